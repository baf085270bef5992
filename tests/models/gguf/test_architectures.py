"""Architectures of GGUF files: llama.cpp's logits, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from mlx_parallm.models.gguf.architectures import ARCHITECTURES
from mlx_parallm.models.loader import load_model
from tests.models import llama_cpp, tiny_gguf
from tests.models.compare_gguf import Note, assert_agrees, logprobs
from tests.models.gguf import tiny_layers
from tests.models.gguf.shapes_of import shapes_of
from tests.models.tiny_gguf import ENCODERS, EXPERTS, HEAD, HEADS, HIDDEN, KV_HEADS, LAYERS, Shapes

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]


@dataclass(frozen=True)
class Case:
    """A tiny file.

    Attributes:
        architecture: llama.cpp's name.
        values: metadata below that name; shapes: of its tensors for a size of vocabulary, where
            tiny_gguf does not know them; or names of tensors that it has and could lack, where all
            are to be those of mlx-lm's model.
        others: shapes of tensors that mlx-lm has otherwise; empty of those that only it has.
        tied: whether the embedding is the head too.
    """

    architecture: str
    values: dict[str, Any] = field(default_factory=dict)
    shapes: Callable[[int], Shapes] | Sequence[str] | None = None
    others: Shapes = field(default_factory=dict)
    tied: bool = False


MOE: dict[str, Any] = {
    "expert_count": EXPERTS,
    "expert_used_count": 2,
    "expert_feed_forward_length": HIDDEN,
}
YARN: dict[str, Any] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 64,
}
GEMMA4: dict[str, Any] = {
    "attention.sliding_window": 8,
    "attention.sliding_window_pattern": [i % 3 < 2 for i in range(LAYERS)],
    "attention.key_length": 2 * HEAD,
    "attention.value_length": 2 * HEAD,
    "attention.key_length_swa": HEAD,
    "attention.value_length_swa": HEAD,
    "rope.dimension_count": 2 * HEAD,
    "rope.dimension_count_swa": HEAD,
    "rope.freq_base": 1_000_000.0,
    "rope.freq_base_swa": 10_000.0,
    "final_logit_softcapping": 30.0,
    "embedding_length_per_layer_input": 0,
}
GEMMA4_LARGE = GEMMA4 | MOE | {"attention.head_count_kv": [KV_HEADS, KV_HEADS, 1] * (LAYERS // 3)}
UNTIED = ("output.weight",)
QKV_BIASES = ("blk.0.attn_q.bias", *UNTIED)
DELTA: dict[str, Any] = {
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "ssm.state_size": 32,
    "ssm.inner_size": 4 * 32,
    "ssm.conv_kernel": 4,
    "full_attention_interval": 3,
    "rope.dimension_count": HEAD // 2,
    "rope.dimension_sections": [2, 1, 1, 0],
}
DELTA_MOE = DELTA | MOE | {"expert_shared_feed_forward_length": HIDDEN}
SIGMOID_MOE = MOE | {
    "expert_shared_count": 1,
    "leading_dense_block_count": 1,
    "expert_weights_scale": 1.5,
    "expert_weights_norm": True,
    "expert_gating_func": 2,
}
LFM2: dict[str, Any] = {
    "attention.head_count_kv": [0, 0, KV_HEADS] * (LAYERS // 3),
    "shortconv.l_cache": 3,
    "rope.freq_base": 1_000_000.0,
}
GRANITE: dict[str, Any] = {
    "attention.scale": 0.3,
    "embedding_scale": 2.0,
    "residual_scale": 0.5,
    "logit_scale": 4.0,
}
MAMBA: dict[str, Any] = {
    "attention.head_count_kv": [0, 0, KV_HEADS] * (LAYERS // 3),
    "ssm.time_step_rank": 8,
    "ssm.group_count": 1,
    "ssm.state_size": 16,
    "ssm.inner_size": 128,
    "ssm.conv_kernel": 4,
}
# llama.cpp has the first ten layers sparse, and those behind the twentieth share K and V. It
# estimates deviations with n - 1, where Gemma has n: in a wide MLP that is nearly the same.
GEMMA3N: dict[str, Any] = {
    "block_count": 25,
    "feed_forward_length": tiny_layers.SPARSE,
    "attention.shared_kv_layers": 5,
    "attention.sliding_window": 8,
    "attention.sliding_window_pattern": [i % 5 < 4 for i in range(25)],
    "activation_sparsity_scale": [1.6448533535003662] * 10 + [float("-inf")] * 15,
    "embedding_length_per_layer_input": 256,
    "altup.num_inputs": 4,
    "altup.active_idx": 0,
    "rope.freq_base": 1_000_000.0,
    "final_logit_softcapping": 30.0,
}
CASES = {
    "llama": Case("llama"),
    "llama-linear": Case("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "mistral3": Case("mistral3"),
    "ministral3": Case(
        "mistral3",
        YARN
        | {
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.5,
        },
    ),
    "qwen2": Case("qwen2"),
    "qwen3": Case("qwen3", tied=True),
    "qwen3moe": Case("qwen3moe", MOE),
    "mixtral": Case("mixtral", {"expert_count": EXPERTS, "expert_used_count": 2}),
    "qwen2moe": Case("qwen2moe", MOE | {"expert_shared_feed_forward_length": HIDDEN}),
    "gemma2": Case(
        "gemma2",
        {
            "attention.sliding_window": 512,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        tied=True,
    ),
    "gemma3": Case("gemma3", {"attention.sliding_window": 8}, tied=True),
    "gemma3n": Case("gemma3n", GEMMA3N, partial(tiny_layers.gemma3n, layers=25)),
    "gemma4": Case(
        "gemma4",
        GEMMA4
        | {
            "attention.shared_kv_layers": LAYERS // 2,
            "embedding_length_per_layer_input": tiny_layers.PER_LAYER,
            "feed_forward_length": [HIDDEN] * (LAYERS // 2) + [2 * HIDDEN] * (LAYERS // 2),
        },
        tiny_layers.gemma4_small,
    ),
    "gemma4-experts": Case("gemma4", GEMMA4_LARGE, partial(tiny_layers.gemma4_large, fused=False)),
    "gemma4-fused": Case("gemma4", GEMMA4_LARGE, partial(tiny_layers.gemma4_large, fused=True)),
    "phi3": Case("phi3", {"attention.sliding_window": 512}),
    # A context beyond the one that it was trained with first.
    "phi3-long": Case(
        "phi3",
        {
            "attention.sliding_window": 512,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(8) / np.log(64))),
        },
    ),
    "gpt-oss": Case(
        "gpt-oss",
        MOE | YARN | {"attention.sliding_window": 8},
    ),
    "smollm3": Case("smollm3"),
    "starcoder2": Case("starcoder2"),
    "command-r": Case("command-r", {"logit_scale": 0.25}, tied=True),
    "granite": Case("granite", GRANITE),
    "granitemoe": Case("granitemoe", GRANITE | MOE, UNTIED),
    "granitehybrid": Case(
        "granitehybrid",
        GRANITE | MAMBA | {"rope.scaling.finetuned": False},
        ("x.ssm_conv1d.bias",),
        tiny_layers.mamba_columns(),
    ),
    "gemma": Case("gemma", {}, ()),
    "olmo2": Case("olmo2", {}, UNTIED),
    "olmo3": Case("olmo2", {"attention.sliding_window": 8} | YARN, UNTIED),
    "exaone4": Case("exaone4", {}, UNTIED),
    # llama.cpp has windows in models of so many layers only.
    "exaone4-windows": Case("exaone4", {"attention.sliding_window": 8, "block_count": 64}, UNTIED),
    "cohere2": Case("cohere2", {"attention.sliding_window": 8, "logit_scale": 0.25}, ()),
    "glm4": Case("glm4", {"rope.dimension_count": HEAD // 2}, QKV_BIASES),
    "ernie4_5": Case("ernie4_5", {}, ()),
    "hunyuan-dense": Case("hunyuan-dense", {}, ("blk.0.attn_q_norm.weight",)),
    "seed_oss": Case("seed_oss", {}, QKV_BIASES),
    "qwen2vl": Case("qwen2vl", {"rope.dimension_sections": [3, 3, 2, 0]}, QKV_BIASES),
    "qwen3vl": Case("qwen3vl", {"rope.dimension_sections": [3, 3, 2, 0]}, UNTIED),
    "glm4moe": Case("glm4moe", SIGMOID_MOE | {"rope.dimension_count": HEAD // 2}, QKV_BIASES),
    "glm4moe-guesses": Case(
        "glm4moe", SIGMOID_MOE | {"block_count": LAYERS + 1, "nextn_predict_layers": 1}, UNTIED
    ),
    "dots1": Case("dots1", SIGMOID_MOE | {"attention.head_count_kv": HEADS}, UNTIED),
    "olmoe": Case("olmoe", MOE | {"attention.head_count_kv": HEADS}, UNTIED),
    "lfm2": Case("lfm2", LFM2, ()),
    "lfm2moe": Case("lfm2moe", LFM2 | SIGMOID_MOE, ()),
    "qwen35": Case("qwen35", DELTA, UNTIED),
    "qwen35moe": Case("qwen35moe", DELTA_MOE, UNTIED),
    "qwen3next": Case("qwen3next", DELTA_MOE, UNTIED, tiny_layers.b_and_a()),
}


def write(case: Case, folder: Path, kind: Kind = Kind.F32) -> Path:
    """The file of a case."""
    shapes = None
    if callable(case.shapes):
        shapes = case.shapes(len(tiny_gguf.vocabulary()[0]))
    elif case.shapes is not None:
        found = shapes_of(folder, case.architecture, case.values, case.shapes) | case.others
        shapes = {tensor: shape for tensor, shape in found.items() if shape}
        if "nextn_predict_layers" in case.values:
            shapes |= tiny_layers.guessing_layer(shapes)
    return tiny_gguf.write(
        folder / f"{kind.name}.gguf",
        case.architecture,
        kind,
        values=case.values,
        tied=case.tied,
        shapes=shapes,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", CASES)
def test_architectures_have_llama_cpps_logits(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    file = write(CASES[name], tmp_path)
    with llama_cpp.serve(file) as oracle:
        said = oracle.continue_greedily(PROMPT, 24)
    note = Note(record_property, f"random, {len(CASES)} architectures", "F32")
    share = assert_agrees(load_model(str(file)), PROMPT, said, 0.02, note)
    assert share == 1.0


@pytest.mark.parametrize("name", ["gemma4-fused", "qwen35", "qwen3next"])
def test_packed_tensors_are_divided_and_put_in_order(name: str, tmp_path: Path) -> None:
    file = write(CASES[name], tmp_path, Kind.Q4_1)
    packed = load_model(str(file))
    plain = load_model(str(llama_cpp.unpacked(file, tmp_path / "plain.gguf")))
    assert np.abs(logprobs(packed, PROMPT) - logprobs(plain, PROMPT)).max() < 1e-4


def test_every_decoder_is_compared() -> None:
    compared = {"llama" if name == "mixtral" else name for name in _architectures()}
    assert compared == set(ARCHITECTURES) - set(ENCODERS)


def _architectures() -> set[str]:
    return {case.architecture for case in CASES.values()}
