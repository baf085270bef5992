"""Weights made smaller when a model is loaded: `--quantize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_lm.utils import quantize_model

from mlx_parallm.errors import ModelLoadError


@dataclass(frozen=True)
class Quantization:
    """MLX's mode, the weights that share a scale, and the bits of a weight."""

    mode: str
    group_size: int
    bits: int


QUANTIZATIONS: Mapping[str, Quantization] = {
    "4bit": Quantization("affine", 64, 4),
    "8bit": Quantization("affine", 64, 8),
    "mxfp4": Quantization("mxfp4", 32, 4),
    "mxfp8": Quantization("mxfp8", 32, 8),
    "nvfp4": Quantization("nvfp4", 16, 4),
}


_CUDA_WIDTH = 64  # at least; weights packed in larger groups need a multiple of these


def check_cuda_shapes(model: Any) -> None:
    """Refuse packed layers that MLX cannot multiply on CUDA: it would fail in the middle of a
    request, once eight rows are in the batch.

    Raises:
        ModelLoadError: the first such layer, by name.
    """
    for name, layer in model.named_modules():
        if not hasattr(layer, "bits") or not hasattr(layer, "scales"):
            continue
        width = layer.weight.shape[-1] * 32 // layer.bits
        least = max(_CUDA_WIDTH, layer.group_size)
        if width % least:
            raise ModelLoadError(
                f"{name}: {width} columns of packed weights are no multiple of {least}, which "
                "MLX needs on CUDA; serve the model unpacked"
            )


def quantize(model: Any, config: dict[str, Any], name: str) -> dict[str, Any]:
    """Quantise a loaded model's linear layers and embeddings in place.

    Layers whose width is not a multiple of the group size stay as they are, and so do
    those that mlx-lm's own predicate for the architecture leaves out.

    Args:
        name: a key of QUANTIZATIONS.

    Returns:
        the config with its "quantization".

    Raises:
        ModelLoadError: it is quantised already, or no layer has a fitting width.
    """
    if config.get("quantization") or config.get("quantization_config"):
        raise ModelLoadError(f"--quantize {name}: this checkpoint is quantised already")
    kind = QUANTIZATIONS[name]
    _, quantized = quantize_model(model, config, kind.group_size, kind.bits, mode=kind.mode)
    if not any(hasattr(module, "bits") for _, module in model.named_modules()):
        raise ModelLoadError(
            f"--quantize {name}: no layer's width is a multiple of {kind.group_size}"
        )
    return quantized
