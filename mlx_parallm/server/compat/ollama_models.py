"""The served model as Ollama lists and shows it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.admin import without_folders
from mlx_parallm.server.answer import Dialect
from mlx_parallm.server.compat.ollama_format import rfc3339
from mlx_parallm.server.state import ServerState

# When a model that nothing unloads expires.
_NEVER = "9999-12-31T23:59:59Z"
_ON_CPU = 0


def tag(state: ServerState, name: str) -> dict[str, Any]:
    """One entry of /api/tags."""
    loaded = state.loaded()
    tagged = name if ":" in name else f"{name}:latest"
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": rfc3339(datetime.fromtimestamp(state.created, UTC)),
        "size": loaded.nbytes,
        "digest": _digest(loaded),
        "details": details(loaded),
        "capabilities": capabilities(loaded, state.prompts().dialect),
    }


def running(state: ServerState, name: str, on_cpu: bool) -> dict[str, Any]:
    """One entry of /api/ps."""
    loaded = state.loaded()
    listed = tag(state, name)
    del listed["modified_at"], listed["capabilities"]
    return {
        **listed,
        "expires_at": _NEVER,
        "size_vram": _ON_CPU if on_cpu else loaded.nbytes,
        "context_length": loaded.max_model_len,
    }


def shown(state: ServerState, name: str) -> dict[str, Any]:
    """The answer of /api/show."""
    loaded = state.loaded()
    template = loaded.tokenizer.chat_template if loaded.tokenizer.has_chat_template else ""
    return {
        "modelfile": f"# Served as {name}\nFROM {without_folders(loaded.path)}\n",
        "parameters": "",
        "template": template if isinstance(template, str) else json.dumps(template),
        "details": details(loaded),
        "model_info": _info(loaded),
        "capabilities": capabilities(loaded, state.prompts().dialect),
        "modified_at": rfc3339(datetime.fromtimestamp(state.created, UTC)),
    }


def details(loaded: LoadedModel) -> dict[str, Any]:
    """Family, size and weights' format."""
    family = _family(loaded)
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _short(loaded.num_parameters),
        "quantization_level": _level(loaded),
    }


def capabilities(loaded: LoadedModel, dialect: Dialect) -> list[str]:
    """What the model can be asked for, in Ollama's words."""
    if loaded.is_encoder:
        return ["embedding"]
    tools = ["tools"] if dialect.has_calls else []
    thinking = ["thinking"] if dialect.thinks else []
    vision = ["vision"] if loaded.vision is not None else []
    return ["completion", *tools, *thinking, *vision, "embedding"]


def _info(loaded: LoadedModel) -> dict[str, Any]:
    family, config = _family(loaded), loaded.config
    named = {
        "block_count": config.get("num_hidden_layers"),
        "embedding_length": config.get("hidden_size"),
        "attention.head_count": config.get("num_attention_heads"),
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "feed_forward_length": config.get("intermediate_size"),
        "context_length": loaded.max_model_len,
        "vocab_size": loaded.vocab_size,
    }
    return {
        "general.architecture": family,
        "general.parameter_count": loaded.num_parameters,
        **{f"{family}.{key}": value for key, value in named.items() if isinstance(value, int)},
    }


def _family(loaded: LoadedModel) -> str:
    return str(loaded.config.get("model_type") or "unknown")


def _level(loaded: LoadedModel) -> str:
    bits = (loaded.quantization or {}).get("bits")
    return loaded.dtype if bits is None else f"{bits}-bit"


def _digest(loaded: LoadedModel) -> str:
    """SHA-256 of what tells models apart here: path, config and size, not of the weights."""
    told = [loaded.path, loaded.config, loaded.num_parameters, loaded.nbytes]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _short(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
