"""What `mlx_parallm check` looks at, one module each."""
