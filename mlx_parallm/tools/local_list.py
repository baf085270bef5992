"""What --list-local prints."""

from __future__ import annotations

from mlx_parallm.models.sources.local_stores import local_models
from mlx_parallm.options.values import size


def local_list() -> str:
    """A line for each model on this machine: what to type behind --model-path, and its size."""
    models = local_models()
    if not models:
        return "no models of Ollama, LM Studio or the hub's cache are on this machine\n"
    width = max(len(model.path) for model in models)
    return "".join(f"{model.path:<{width}}  {size(model.nbytes):>9}\n" for model in models)
