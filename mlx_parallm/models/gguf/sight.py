"""What a model sees with: the mmproj file beside its own, as mlx-vlm has it.

Only Gemma 3's so far. llama.cpp's names and keys: gguf-py/gguf/constants.py (clip.*, v.*, mm.*).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType
from gguf.quants import dequantize

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import Architecture, Config
from mlx_parallm.models.gguf.reader import GgufFile, GgufTensor

_TEXT = "language_model."
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_FEATURE = "<image_soft_token>"  # stands for a vector of a picture
_SPARE = re.compile(r"<unused\d+>")
_BEGIN, _END = "<start_of_image>", "<end_of_image>"
# What tokenizer_config.json says of them.
SPECIAL_TOKENS = {
    "extra_special_tokens": {"image_token": _FEATURE, "boi_token": _BEGIN, "eoi_token": _END}
}
_LAYER = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_TOWER = {
    "v.patch_embd": "embeddings.patch_embedding",
    "v.position_embd": "embeddings.position_embedding",
    "v.post_ln": "post_layernorm",
}
_PROJECTOR = {
    "mm.input_projection.weight": "multi_modal_projector.mm_input_projection_weight",
    "mm.soft_emb_norm.weight": "multi_modal_projector.mm_soft_emb_norm.weight",
}


def beside(path: Path) -> list[Path]:
    """The mmproj files in a GGUF file's folder, the largest first."""
    found = [file for file in path.parent.glob("*.gguf") if "mmproj" in file.name.lower()]
    return sorted(found, key=lambda file: (-file.stat().st_size, file.name))


@dataclass(frozen=True)
class Sight:
    """An mmproj file that fits a model.

    Attributes:
        side: of the picture, in pixels; patch: of a part; tokens: that a picture takes.
    """

    file: GgufFile
    side: int
    patch: int
    tokens: int

    def within(self, kind: Architecture) -> Architecture:
        """The text model as a part of the one that sees."""
        top = {part: f"{_TEXT}{name}" for part, name in kind.top.items()}
        return replace(kind, top=top, body=f"{_TEXT}{kind.body}")

    def config(self, text: Config, tokens: list[str]) -> Config:
        """config.json of the model that sees."""
        need = self.file.need
        return {
            "model_type": "gemma3",
            "text_config": text | {"mm_tokens_per_image": self.tokens},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "num_hidden_layers": need("clip.vision.block_count"),
                "hidden_size": need("clip.vision.embedding_length"),
                "intermediate_size": need("clip.vision.feed_forward_length"),
                "num_attention_heads": need("clip.vision.attention.head_count"),
                "layer_norm_eps": need("clip.vision.attention.layer_norm_epsilon"),
                "patch_size": self.patch,
                "image_size": self.side,
            },
            "mm_tokens_per_image": self.tokens,
            "image_token_index": tokens.index(_FEATURE),
            "hidden_size": text["hidden_size"],
            "vocab_size": text["vocab_size"],
            "pad_token_id": 0,
        }

    def files(self) -> dict[str, dict[str, Any]]:
        """How a picture is prepared, as files beside config.json."""
        return {
            "preprocessor_config.json": {
                "image_processor_type": "Gemma3ImageProcessor",
                "size": {"height": self.side, "width": self.side},
                "image_mean": list(self.file.need("clip.vision.image_mean")),
                "image_std": list(self.file.need("clip.vision.image_std")),
                "image_seq_length": self.tokens,
                "resample": 2,
            },
            "processor_config.json": {
                "processor_class": "Gemma3Processor",
                "image_seq_length": self.tokens,
            },
        }

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and arrays of the tower and of what leads from it to the text model.

        Raises:
            ModelLoadError: a tensor that is not known.
        """
        first = self.file.tensor("v.blk.0.ffn_up.weight")
        width = self.file.need("clip.vision.embedding_length")
        # Older converters called the two the other way round.
        turned = first is not None and first.shape[0] == width != first.shape[1]
        for tensor in self.file.tensors():
            yield _name(tensor.name, turned), _values(tensor)


def sight_of(path: Path, text: GgufFile) -> tuple[Sight | None, str]:
    """The sight of a model, where a file beside it holds one; else why the files there do not.

    Raises:
        ModelLoadError: a file that fits, but cannot be read.
    """
    reasons = []
    for file in map(GgufFile, beside(path)):
        reason = _why_not(file, text)
        if not reason:
            return _sight(file), ""
        reasons.append(reason)
    return None, reasons[0] if reasons else ""


def _why_not(file: GgufFile, text: GgufFile) -> str:
    """Why a model does not see with a file; empty where it does."""
    family = str(text.need("general.architecture"))
    kind = str(file.get("clip.vision.projector_type") or file.get("clip.projector_type", ""))
    if (kind, family) != ("gemma3", "gemma3"):
        return (
            f"{file.path.name} is of the kind {kind or 'unknown'}, beside a {family} model; "
            "pictures are supported for gemma3's."
        )
    if file.get("clip.vision.projection_dim") != text.need("gemma3.embedding_length"):
        return f"{file.path.name} belongs to another model than the served one."
    return ""


def _sight(file: GgufFile) -> Sight:
    side, patch = (int(file.need(f"clip.vision.{name}_size")) for name in ("image", "patch"))
    pooled = int(file.get("clip.vision.projector.scale_factor", 4))
    return Sight(file, side, patch, (side // patch // pooled) ** 2)


def name_tokens(file: GgufFile) -> None:
    """Make sure of a token that stands for a picture's vectors.

    A converter leaves the one that there was out, since llama.cpp needs none. Then a token takes
    its place that was never used.

    Raises:
        ModelLoadError: there is none.
    """
    tokens, types = list(file.need(_TOKENS)), list(file.need(_TYPES))
    if _FEATURE not in tokens:
        spare = [i for i, token in enumerate(tokens) if _SPARE.fullmatch(token)]
        if not spare:
            raise ModelLoadError(f"{file.path}: no token can stand for pictures, as {_FEATURE}")
        tokens[spare[-1]] = _FEATURE
    for token in (_BEGIN, _END, _FEATURE):
        if token not in tokens:
            raise ModelLoadError(f"{file.path}: there is no token {token} for pictures")
        types[tokens.index(token)] = int(TokenType.CONTROL)
    file.override({_TOKENS: tokens, _TYPES: types})


def _name(stored: str, turned: bool) -> str:
    if stored in _PROJECTOR:
        return _PROJECTOR[stored]
    stem, _, suffix = stored.rpartition(".")
    if stem in _TOWER:
        return f"vision_tower.vision_model.{_TOWER[stem]}.{suffix}"
    layer, _, part = stem.removeprefix("v.blk.").partition(".")
    if turned and part.startswith("ffn_"):
        part = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}.get(part, part)
    if not stem.startswith("v.blk.") or part not in _LAYER:
        raise ModelLoadError(f"the tensor {stored} is not known in mmproj files of this kind")
    return f"vision_tower.vision_model.encoder.layers.{layer}.{_LAYER[part]}.{suffix}"


def _values(tensor: GgufTensor) -> np.ndarray:
    values = dequantize(tensor.data, tensor.kind).reshape(tensor.shape).astype(np.float32)
    if tensor.name == "v.patch_embd.weight":
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    return values - np.float32(1) if tensor.name == "mm.soft_emb_norm.weight" else values
