"""Guessing ahead: drafters, what guesses cost and gain, and how far to guess."""
