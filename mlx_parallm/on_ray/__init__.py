"""What mlx_parallm/ray_app.py is made of: the front, the replicas, the router between them."""
