"""Bounds that models and caches share."""

MAX_WIDTH = 512  # tokens of a row in one forward; rings keep this much room beyond their window
