"""The engine: scheduler, caches and sampler behind one thread that owns MLX."""
