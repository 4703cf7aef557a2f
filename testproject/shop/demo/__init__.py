"""What ``manage.py demo`` is made of: the warehouse outside, the processes, and the account of what happened."""
