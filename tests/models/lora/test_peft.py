"""Adapters of PEFT, mixed in one forward, against PEFT on torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.peft_format import deltas_of
from tests.models.lora.forwards import (
    Note,
    apart,
    mixed,
    note,
    pack,
    plain_parameters,
    slots_of,
    some_tokens,
)

pytestmark = [
    pytest.mark.usefixtures("no_compile"),
    pytest.mark.filterwarnings("ignore"),  # of PEFT, about what the cases do on purpose
]

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASES: dict[str, dict[str, Any]] = {
    "biased": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6},
    "alpha_pattern": {"q_proj": 3, ".*layers.0.mlp.up_proj": 5},
}
LANES = (0, 1, 2, 1, 0)

ALL: dict[str, Any] = {"target_modules": LINEARS}
SAVED = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}
SOME = {"target_modules": ["q_proj", "up_proj"]}

# name -> (base, settings of LoraConfig)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("plain", ALL),
    "rslora": ("plain", {**ALL, "use_rslora": True}),
    "dora": ("biased", {**ALL, "use_dora": True}),
    "patterns": ("plain", {**ALL, **PATTERNS}),
    "saved modules": ("plain", SAVED),
    "all biases": ("biased", {**SOME, "bias": "all"}),
    "their biases": ("biased", {**SOME, "bias": "lora_only"}),
    "bias of B": ("biased", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "embedding and head": ("plain", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "tied embedding": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied head": ("tied", {"target_modules": ["q_proj", "lm_head"]}),
    "embedding, dora": ("plain", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    "lora, packed": ("packed", ALL),
    "lora, packed 8": ("packed 8", ALL),
    "lora, mxfp4": ("packed mxfp4", ALL),
    "rslora, packed": ("packed", {**ALL, "use_rslora": True}),
    "dora, packed": ("packed biased", {**ALL, "use_dora": True}),
    "dora, mxfp4": ("packed mxfp4", {**ALL, "use_dora": True}),
    "patterns, packed": ("packed", {**ALL, **PATTERNS}),
    "saved modules, packed": ("packed", SAVED),
    "all biases, packed": ("packed biased", {**SOME, "bias": "all"}),
    "bias of B, packed": ("packed biased", {**SOME, "lora_bias": True}),
    "embedding and head, packed": (
        "packed",
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ),
    "embedding, dora, packed": (
        "packed",
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    ),
    "tied embedding, packed": ("packed tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied head, packed": ("packed tied", {"target_modules": ["q_proj", "lm_head"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_mixed_rows_equal_peft(
    llama_factory: Any, tmp_path: Path, case: str, record_property: Note
) -> None:
    """On packed bases the oracle computes with the unpacked weights."""
    from tests.models.lora.peft_adapters import logits_of, peft_adapter, torch_llama

    base, settings = CASES[case]
    loaded = llama_factory(**BASES.get(base.split()[-1], {}))
    model = pack(loaded.model, base)
    oracles = [torch_llama(model, loaded.config)]
    folders = [tmp_path / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        twin = torch_llama(model, loaded.config)
        oracles.append(peft_adapter(folder, twin, number, **{"r": 4, "lora_alpha": 8, **settings}))
    slots = slots_of(model, folders)
    error = 0.0
    for width in (1, 12):
        tokens = some_tokens(len(LANES), width)
        logits = mixed(model, slots, tokens, LANES)
        wanted = [logits_of(oracle, tokens) for oracle in oracles]
        assert apart(wanted[1], wanted[0]) > 0.1
        for row, lane in enumerate(LANES):
            error = max(error, apart(logits[row], wanted[lane][row]))
    assert error < 1e-4
    kind = case.removesuffix(", packed").removesuffix(", packed 8").removesuffix(", mxfp4")
    note(record_property, kind, "PEFT", base, "PEFT on torch", error)


@pytest.mark.parametrize("base", ["experts", "packed experts"])
def test_experts_equal_merged_weights(tmp_path: Path, base: str, record_property: Note) -> None:
    """PEFT's files of a mixture that has a module for each expert; torch's Mixtral of today has
    none, so the oracle is the model with W + B A alpha / r of each expert in its weights."""
    from tests.models.lora.test_mlx_lm import tiny_mixtral

    rng, tensors = np.random.default_rng(3), {}
    model, oracle = pack(tiny_mixtral(), base), tiny_mixtral()
    copies = [(name, mx.array(value)) for name, value in plain_parameters(model).items()]
    oracle.update(tree_unflatten(copies))
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for layer, expert, name in ((0, 0, "w1"), (0, 3, "w2"), (1, 1, "w3"), (1, 1, "w2")):
        home = oracle.model.layers[layer].block_sparse_moe.switch_mlp[names[name]]
        out, width = home.weight.shape[1:]
        a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, width), (out, 2)))
        owner = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
        tensors[f"{owner}.lora_A.weight"] = mx.array(a)
        tensors[f"{owner}.lora_B.weight"] = mx.array(b)
        home.weight[expert] = home.weight[expert] + mx.array(b @ a) * 0.5
    mx.save_safetensors(str(tmp_path / "adapter_model.safetensors"), tensors)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 1}')
    plain, error = pack(tiny_mixtral(), base), 0.0
    slots = slots_of(model, [tmp_path])
    for width in (1, 40):
        tokens = some_tokens(3, width)
        logits = mixed(model, slots, tokens, (1, 0, 1))
        wanted = oracle(mx.array(tokens))
        error = max(error, *(apart(logits[row], wanted[row]) for row in (0, 2)))
        assert apart(logits[1], plain(mx.array(tokens))[1]) < 1e-6
    assert error < 1e-4
    note(record_property, "experts", "PEFT", base, "merged weights", error)


def test_experts_are_stacked() -> None:
    """PEFT's names of each expert's projections; experts that are left out change nothing."""
    from tests.models.lora.test_mlx_lm import tiny_mixtral

    modules = Modules(tiny_mixtral())
    owner = "base_model.model.model.layers.1.block_sparse_moe.experts.2.w3"
    a = np.arange(64, dtype=np.float32).reshape(2, 32)
    b = np.arange(128, dtype=np.float32).reshape(64, 2)
    tensors = {f"{owner}.lora_A.weight": a, f"{owner}.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    ((path, delta),) = deltas_of(config, tensors, modules).items()
    assert path == "model.layers.1.block_sparse_moe.switch_mlp.up_proj"
    assert delta.a is not None and delta.b is not None
    assert (delta.a[2] == a.T).all() and (delta.b[2] == 3 * b.T).all()
    assert not delta.a[[0, 1, 3]].any()
    assert mx.array(delta.a).shape == (4, 32, 2)
