"""Rotary embeddings of GGUF files: base, and how they reach beyond the trained context."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.reader import GgufFile


def rope_config(file: GgufFile, prefix: str) -> dict[str, Any]:
    """rope_theta and rope_scaling of config.json.

    Raises:
        ModelLoadError: a kind of scaling that is not known here.
    """
    base = float(file.get(f"{prefix}.rope.freq_base", 10_000.0))
    found: dict[str, Any] = {"rope_theta": base, "rope_scaling": None}
    kind = file.get(f"{prefix}.rope.scaling.type", "none")
    factors = file.tensor("rope_freqs.weight")
    if factors is not None:
        return found | {"rope_scaling": _llama3(file, prefix, base, np.array(factors.data))}
    if file.tensor("rope_factors_long.weight") is not None:
        return found | _longrope(file, prefix)
    if kind == "linear":
        factor = float(file.need(f"{prefix}.rope.scaling.factor"))
        return found | {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        return found | {"rope_scaling": _yarn(file, prefix)}
    if kind != "none":
        raise ModelLoadError(f"{file.path}: rope scaling of the kind {kind} is not supported")
    return found


def _longrope(file: GgufFile, prefix: str) -> dict[str, Any]:
    """Phi-3's beyond 4k: each frequency has a factor, which mlx-lm uses for short texts too."""
    before = int(file.need(f"{prefix}.rope.scaling.original_context_length"))
    ratio = int(file.need(f"{prefix}.context_length")) / before
    scale = math.sqrt(1 + math.log(ratio) / math.log(before)) if ratio > 1 else 1.0
    stored = float(file.get(f"{prefix}.rope.scaling.attn_factor", scale))
    if not math.isclose(stored, scale, rel_tol=1e-3):
        raise ModelLoadError(f"{file.path}: its attn_factor {stored} is not that of longrope")
    factors = {
        f"{name}_factor": [float(n) for n in tensor.data]
        for name in ("long", "short")
        if (tensor := file.tensor(f"rope_factors_{name}.weight")) is not None
    }
    return {
        "original_max_position_embeddings": before,
        "rope_scaling": {
            "type": "longrope",
            "original_max_position_embeddings": before,
            **factors,
        },
    }


def _yarn(file: GgufFile, prefix: str) -> dict[str, Any]:
    for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        if file.get(f"{prefix}.rope.scaling.{name}", 1.0) != 1:
            raise ModelLoadError(f"{file.path}: YaRN with its own {name} is not supported")
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": float(file.need(f"{prefix}.rope.scaling.factor")),
        "original_max_position_embeddings": int(
            file.need(f"{prefix}.rope.scaling.original_context_length")
        ),
    }
    for name in ("beta_fast", "beta_slow"):
        if (beta := file.get(f"{prefix}.rope.scaling.yarn_{name}")) is not None:
            found[name] = float(beta)
    if scale := file.get(f"{prefix}.rope.scaling.yarn_log_multiplier"):
        found |= {"mscale": 1.0, "mscale_all_dim": float(scale)}
    return found


def _llama3(file: GgufFile, prefix: str, base: float, factors: np.ndarray) -> dict[str, Any]:
    """Llama 3's scaling; the file holds the factor of each frequency only."""
    scaling = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": int(
            file.get(f"{prefix}.rope.scaling.original_context_length", 8192)
        ),
    }
    if not np.allclose(_llama3_factors(base, len(factors), scaling), factors, rtol=1e-3):
        raise ModelLoadError(f"{file.path}: its rope_freqs are not those of Llama 3's scaling")
    return scaling


def _llama3_factors(base: float, count: int, scaling: dict[str, Any]) -> np.ndarray:
    """What each of `count` frequencies is divided by; transformers' modeling_rope_utils."""
    context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    found = []
    for i in range(count):
        wavelength = 2 * math.pi * base ** (i / count)
        smooth = (context / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found)
