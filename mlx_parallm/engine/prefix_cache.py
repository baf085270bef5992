"""The documented import path of RadixAttentionCache; it lives in cache/prefix_cache.py."""

from mlx_parallm.cache.prefixes.prefix_cache import RadixAttentionCache

__all__ = ["RadixAttentionCache"]
