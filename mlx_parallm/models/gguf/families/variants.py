"""Decoders of attention and an MLP with norms, heads or windows in other places."""

from __future__ import annotations

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import (
    Architecture,
    Config,
    each_layer,
    norms_minus_one,
)
from mlx_parallm.models.gguf.families.dense import biases, partial_rotary
from mlx_parallm.models.gguf.names import ATTENTION, LLAMA, MLP, QK_NORM
from mlx_parallm.models.gguf.reader import GgufFile

_BEHIND = {
    part: name for part, name in (ATTENTION | QK_NORM | MLP).items() if part != "attn_norm"
} | {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GLM4 = ATTENTION | {
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_HUNYUAN = LLAMA | {
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
}
_WINDOWS = ("sliding_window", "sliding_window_pattern")
_SEED = ATTENTION | MLP | {"post_attention_norm": "post_attention_layernorm"}


def windows(file: GgufFile, prefix: str) -> list[bool]:
    """Which layers see a window only.

    Raises:
        ModelLoadError: the file does not say in a way that is known.
    """
    count = int(file.need(f"{prefix}.block_count"))
    key = f"{prefix}.attention.sliding_window_pattern"
    found = file.get(key, 4)
    if isinstance(found, list):
        return [bool(it) for it in each_layer(file, key, count)]
    return [(i + 1) % int(found) != 0 for i in range(count)]


def _layer_types(seen: list[bool]) -> Config:
    return {"layer_types": ["sliding_attention" if it else "full_attention" for it in seen]}


def _olmo3(file: GgufFile, prefix: str) -> Config:
    window = file.need(f"{prefix}.attention.sliding_window")
    return _layer_types(windows(file, prefix)) | {"sliding_window": window}


def _exaone4(file: GgufFile, prefix: str) -> Config:
    window = file.get(f"{prefix}.attention.sliding_window")
    found = windows(file, prefix)
    if not window:
        return _layer_types([False] * len(found)) | dict.fromkeys(_WINDOWS)
    letters = "".join("L" if it else "G" for it in found)
    return _layer_types(found) | dict(zip(_WINDOWS, (window, letters), strict=True))


def _cohere2(file: GgufFile, prefix: str) -> Config:
    found = windows(file, prefix)
    period = found.index(False) + 1 if False in found else 0
    if found != [(i + 1) % max(period, 1) != 0 for i in range(len(found))]:
        raise ModelLoadError(f"{file.path}: its windows are not in every {period}th layer")
    return biases(file, prefix) | {
        "logit_scale": file.need(f"{prefix}.logit_scale"),
        "sliding_window": file.need(f"{prefix}.attention.sliding_window"),
        "sliding_window_pattern": period,
    }


def _glm4(file: GgufFile, prefix: str) -> Config:
    if file.get(f"{prefix}.rope.dimension_sections"):
        raise ModelLoadError(f"{file.path}: positions in several axes are not supported")
    return biases(file, prefix) | partial_rotary(file, prefix)


def _hunyuan(file: GgufFile, prefix: str) -> Config:
    return biases(file, prefix) | {"use_qk_norm": "blk.0.attn_q_norm.weight" in file.names}


def _ernie(file: GgufFile, prefix: str) -> Config:
    return {"use_bias": "blk.0.attn_q.bias" in file.names}


def _seed(file: GgufFile, prefix: str) -> Config:
    return biases(file, prefix) | {"attention_out_bias": "blk.0.attn_output.bias" in file.names}


VARIANTS = {
    "gemma": Architecture("gemma", values=norms_minus_one, wide_range=True),
    "olmo2": Architecture("olmo2", _BEHIND),
    "exaone4": Architecture("exaone4", _BEHIND, _exaone4),
    "cohere2": Architecture(
        "cohere2", {part: name for part, name in LLAMA.items() if part != "ffn_norm"}, _cohere2
    ),
    "glm4": Architecture("glm4", _GLM4, _glm4),
    "ernie4_5": Architecture("ernie4_5", more=_ernie),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", _HUNYUAN, _hunyuan),
    "seed_oss": Architecture("seed_oss", _SEED, _seed),
}
# A file of OLMo 3 says that it is of OLMo 2's kind, with windows.
OLMO3 = Architecture("olmo3", _BEHIND, _olmo3)
