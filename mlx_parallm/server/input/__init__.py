"""What a request says: its body, its prompt as token ids, its settings and its constraint."""
