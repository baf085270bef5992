"""Models that see: pictures in, rows of features out, beside mlx-lm's text models."""
