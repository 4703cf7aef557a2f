"""What a type checker says of programs that use django_taskq."""
