"""What an answer looks like: JSON and server-sent events of each API."""
