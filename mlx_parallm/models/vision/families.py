"""Families of models that see: what this server has to know of each, and which it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlx_parallm.models.vision.video_layout import (
    Frames,
    TemporalPatches,
    VideoLayout,
    clocked,
    numbered,
    told_with_times,
)

Axes = Literal["chunked", "interleaved"]
Whole = Literal["everywhere", "in windows"]


@dataclass(frozen=True, slots=True)
class Family:
    """What is particular to a family; its tower and its processor are mlx-vlm's.

    Attributes:
        processor: mlx-vlm's class, as "folder.module:name" below mlx_vlm.models.
        placeholder: what its chat template writes for a picture; empty is the token that the
            tokenizer calls image_token.
        axes: how its rotary embedding divides its frequencies among time, height and width;
            None has one position a token.
        inner: its text model is the one that its text_config names; else mlx-lm knows the
            family itself.
        text: mlx-lm's name of the text model, where text_config has another one.
        whole: tokens of a picture look at all of it, also at what is behind them: in all layers,
            or in those with a sliding window and no farther back than it.
        scaled: its text model multiplies what stands for tokens by the root of its width, which
            its features are not made for.
        bare_call: its processor takes no settings for the tokenizer, which may write a token at
            the beginning of texts.
        towers: model types of its vision_config that are known; empty is any.
        video: how it is shown videos; None takes none.
        kind: the folder of mlx-vlm's model, where it is another one than the family's.
    """

    processor: str
    placeholder: str
    axes: Axes | None = None
    inner: bool = False
    whole: Whole | None = None
    scaled: bool = False
    bare_call: bool = False
    towers: tuple[str, ...] = ()
    video: VideoLayout | None = None
    kind: str = ""
    text: str = ""

    @property
    def video_placeholder(self) -> str:
        """What stands for a video in a rendered conversation."""
        if isinstance(self.video, TemporalPatches):
            return self.video.placeholder
        return self.placeholder


# Frames are never cut into parts.
_UNDIVIDED = {"do_image_splitting": False}
# A frame has fewer tokens than a picture.
_GEMMA4_VIDEO = Frames(clocked, {"max_soft_tokens": 70})
_QWEN3 = Family(
    "qwen3_vl.processing_qwen3_vl:Qwen3VLProcessor",
    "<|image_pad|>",
    axes="interleaved",
    video=TemporalPatches("<|vision_start|><|video_pad|><|vision_end|>", timed=True),
)

_PIXTRAL = Family("pixtral.processing_pixtral:PixtralProcessor", "[IMG]", inner=True)

FAMILIES: Mapping[str, Family] = {
    "aya_vision": Family(
        "aya_vision.processing_aya_vision:AyaVisionOutputProcessor", "<image>", inner=True
    ),
    "gemma3": Family(
        "gemma3.processing_gemma3:Gemma3Processor", "<start_of_image>", whole="everywhere"
    ),
    "gemma4": Family(
        "gemma4.processing_gemma4:Gemma4Processor",
        "",
        whole="in windows",
        scaled=True,
        video=_GEMMA4_VIDEO,
    ),
    "gemma4_unified": Family(
        "gemma4_unified.processing_gemma4_unified:Gemma4UnifiedProcessor",
        "",
        whole="everywhere",
        scaled=True,
        video=_GEMMA4_VIDEO,
    ),
    "glm4v": Family(
        "glm4v.processing:Glm46VProcessor", "<|image|>", axes="chunked", inner=True, text="glm4"
    ),
    "glm4v_moe": Family(
        "glm4v_moe.processing:Glm46VMoEProcessor",
        "<|image|>",
        axes="chunked",
        inner=True,
        text="glm4_moe",
    ),
    "idefics3": Family(
        "idefics3.processing_idefics3:Idefics3Processor",
        "<image>",
        inner=True,
        video=Frames(numbered, _UNDIVIDED),
    ),
    "internvl": Family(
        "internvl.processing_internvl:InternVLProcessor",
        "<IMG_CONTEXT>",
        inner=True,
        video=Frames(numbered, {"do_dynamic_preprocess": False}),
    ),
    "kimi_k25": Family(
        "kimi_k25.processing_kimi_k25:KimiK25Processor",
        "<|media_pad|>",
        inner=True,
        bare_call=True,
    ),
    "kimi_vl": Family(
        "kimi_vl.processing_kimi_vl:KimiVLProcessor", "<|media_pad|>", inner=True, bare_call=True
    ),
    "lfm2-vl": Family("lfm2_vl.processing_lfm2_vl:Lfm2VlProcessor", "<image>", inner=True),
    "lfm2_vl": Family("lfm2_vl.processing_lfm2_vl:Lfm2VlProcessor", "<image>", inner=True),
    "llava": Family(
        "llava.processing_llava:LlavaProcessor",
        "<image>",
        inner=True,
        bare_call=True,
        towers=("clip_vision_model", "siglip_vision_model"),
    ),
    "llava_onevision": Family(
        "llava_onevision.processing_llava_onevision:LlavaOnevisionProcessor",
        "<image>",
        inner=True,
        bare_call=True,
    ),
    "mistral3": Family("mistral3.processing_mistral3:Mistral3Processor", "[IMG]"),
    "pixtral": _PIXTRAL,
    "qwen2_5_vl": Family(
        "qwen2_5_vl.processing_qwen2_5_vl:Qwen2_5_VLProcessor",
        "<|image_pad|>",
        axes="chunked",
        video=TemporalPatches("<|video_pad|>", by_seconds=True),
    ),
    "qwen2_vl": Family(
        "qwen2_vl.processing_qwen2_vl:Qwen2VLProcessor",
        "<|image_pad|>",
        axes="chunked",
        video=TemporalPatches("<|video_pad|>"),
    ),
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "smolvlm": Family(
        "smolvlm.processing_smolvlm:SmolVLMProcessor",
        "<image>",
        inner=True,
        video=Frames(told_with_times, _UNDIVIDED),
    ),
}

# A family that is named by its text model sees with another one's tower.
_BY_TOWER: Mapping[tuple[str, str], Family] = {
    ("llava", "pixtral"): replace(_PIXTRAL, kind="pixtral"),
}

REFUSED: Mapping[str, str] = {
    "florence2": "its decoder looks at pictures through cross-attention, which no row cache holds",
    "paligemma": "all of a prompt looks at all of it, so that no part can be computed by itself",
    "mllama": "its text layers look at pictures through cross-attention, which no row cache holds",
}


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config.json; None where it is no model that sees, or none of these."""
    family, tower = FAMILIES.get(str(config.get("model_type"))), config.get("vision_config")
    if family is None or not tower:
        return None
    other = _BY_TOWER.get((str(config["model_type"]), str(tower.get("model_type"))))
    if other is not None:
        return other
    if family.towers and tower.get("model_type") not in family.towers:
        return None
    if family.scaled and not _looks_ahead(config):
        return replace(family, whole=None)
    return family


def _looks_ahead(config: Mapping[str, Any]) -> bool:
    """Whether Gemma 4's tokens of pictures see what is behind them: not in the smaller models."""
    default = "vision" if config.get("model_type") == "gemma4_unified" else None
    text = config.get("text_config") or {}
    return bool(text.get("use_bidirectional_attention", default) == "vision")
