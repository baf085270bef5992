"""Models that see against transformers on torch."""
