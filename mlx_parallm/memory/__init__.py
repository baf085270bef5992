"""Extended Mind memories: collections of K and V that any request can attend to."""

from mlx_parallm.memory.backends.backend import MemoryBackend
from mlx_parallm.memory.backends.faiss_backend import FAISSBackend
from mlx_parallm.memory.manager import MemoryManager

__all__ = ["FAISSBackend", "MemoryBackend", "MemoryManager"]
