"""Families of models that see: what this server has to know of each, and which it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Axes = Literal["chunked", "interleaved"]


@dataclass(frozen=True, slots=True)
class Family:
    """What is particular to a family; its tower and its processor are mlx-vlm's.

    Attributes:
        processor: mlx-vlm's class, as "folder.module:name" below mlx_vlm.models.
        placeholder: what its chat template writes for a picture.
        axes: how its rotary embedding divides its frequencies among time, height and width;
            None has one position a token.
        inner: its text model is the one that its text_config names; else mlx-lm knows the
            family itself.
    """

    processor: str
    placeholder: str
    axes: Axes | None = None
    inner: bool = False


FAMILIES: Mapping[str, Family] = {
    "idefics3": Family("idefics3.processing_idefics3:Idefics3Processor", "<image>", inner=True),
    "qwen2_5_vl": Family(
        "qwen2_5_vl.processing_qwen2_5_vl:Qwen2_5_VLProcessor", "<|image_pad|>", axes="chunked"
    ),
    "qwen2_vl": Family(
        "qwen2_vl.processing_qwen2_vl:Qwen2VLProcessor", "<|image_pad|>", axes="chunked"
    ),
    "qwen3_vl": Family(
        "qwen3_vl.processing_qwen3_vl:Qwen3VLProcessor", "<|image_pad|>", axes="interleaved"
    ),
    "smolvlm": Family("smolvlm.processing_smolvlm:SmolVLMProcessor", "<image>", inner=True),
}

REFUSED: Mapping[str, str] = {
    "florence2": "its decoder looks at pictures through cross-attention, which no row cache holds",
    "mllama": "its text layers look at pictures through cross-attention, which no row cache holds",
}


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config.json; None where it is no model that sees, or none of these."""
    return FAMILIES.get(str(config.get("model_type"))) if config.get("vision_config") else None
