"""How long steps take, and how many prompt tokens the next one may have."""
