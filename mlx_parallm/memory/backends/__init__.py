"""Where collections are stored."""
