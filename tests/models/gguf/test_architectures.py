"""Architectures of GGUF files: llama.cpp's logits, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_parallm.models.gguf.architectures import ARCHITECTURES
from mlx_parallm.models.loader import load_model
from tests.models import llama_cpp, tiny_gguf
from tests.models.compare_gguf import Note, assert_agrees
from tests.models.gguf import tiny_layers
from tests.models.tiny_gguf import EXPERTS, HEAD, HIDDEN, KV_HEADS, LAYERS, Shapes

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]


@dataclass(frozen=True)
class Case:
    """A tiny file.

    Attributes:
        architecture: llama.cpp's name.
        values: metadata below that name; shapes: of its tensors for a size of vocabulary, where
            tiny_gguf does not know them.
        tied: whether the embedding is the head too.
    """

    architecture: str
    values: dict[str, Any] = field(default_factory=dict)
    shapes: Callable[[int], Shapes] | None = None
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
    "granite": Case(
        "granite",
        {
            "attention.scale": 0.3,
            "embedding_scale": 2.0,
            "residual_scale": 0.5,
            "logit_scale": 4.0,
        },
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", CASES)
def test_architectures_have_llama_cpps_logits(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    case = CASES[name]
    shapes = case.shapes(len(tiny_gguf.vocabulary()[0])) if case.shapes else None
    file = tiny_gguf.write(
        tmp_path / "tiny.gguf",
        case.architecture,
        values=case.values,
        tied=case.tied,
        shapes=shapes,
    )
    with llama_cpp.serve(file) as oracle:
        said = oracle.continue_greedily(PROMPT, 24)
    note = Note(record_property, f"random, {len(CASES)} architectures", "F32")
    share = assert_agrees(load_model(str(file)), PROMPT, said, 0.02, note)
    assert share == 1.0


def test_every_decoder_is_compared() -> None:
    compared = {"llama" if name == "mixtral" else name for name in _architectures()}
    assert compared == set(ARCHITECTURES) - {"bert"}


def _architectures() -> set[str]:
    return {case.architecture for case in CASES.values()}
