"""How mlx-lm's model definitions are made to compute rows of a batch."""
