"""What soak.py asks for, and what has to stay level."""
