"""What `mlx_parallm COMMAND` runs beside the server: each module has a main(argv) -> int."""
