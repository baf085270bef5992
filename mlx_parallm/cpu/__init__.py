"""Replacements for operations that MLX computes slowly on x86 CPUs.

Each module holds one family and can be used alone; `mlx_parallm.models.adapting.replacements`
switches them on for a loaded model. All of them are plain MLX operations in
float32 and agree with the operations they stand for to about 1e-6; other types
are left to MLX.
"""
