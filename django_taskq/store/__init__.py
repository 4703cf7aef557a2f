"""The only room that writes rows. What differs between databases is in ``vendors``."""
