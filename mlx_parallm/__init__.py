"""mlx_parallm: an OpenAI-compatible inference server on MLX that batches everything."""

from __future__ import annotations

import importlib
from typing import Any

from mlx_parallm.cpu import blas as _blas
from mlx_parallm.open_files import keep_limit_when_importing_mlx_lm as _keep_limit

__version__ = "0.1.0"

# Before anything in this package imports mlx: that is when libmlx gets its BLAS.
_blas.preload()
_keep_limit()

# Public name -> module. Looked up on first use, so that `import mlx_parallm` stays cheap and
# `mlx_parallm_serve --help` does not load MLX.
_PUBLIC: dict[str, str] = {
    "load": "utils",
    "close": "utils",
    "generate": "utils",
    "generate_step": "utils",
    "stream_generate": "utils",
    "batch_generate": "utils",
    "batch_stream_generate_text": "utils",
    "FinishReason": "utils",
    "GenerationResponse": "utils",
    "GenerateKeywords": "generate_settings",
    "GenerateSettings": "generate_settings",
    "AsyncContinuousBatchingEngine": "continuous_batching",
    "BatchConfig": "continuous_batching",
    "SpeculativeConfig": "speculative_decoding",
    "SpeculativeDecodingEngine": "speculative_decoding",
    "SpeculativeResult": "speculative_decoding",
    "ParallmError": "errors",
    "InvalidRequestError": "errors",
    "ModelLoadError": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
