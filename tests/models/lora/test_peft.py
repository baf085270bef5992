"""Adapters of PEFT, mixed in one forward, against PEFT on torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.peft_format import deltas_of
from tests.models.lora.forwards import apart, mixed, slots_of, some_tokens

pytestmark = [
    pytest.mark.usefixtures("no_compile"),
    pytest.mark.filterwarnings("ignore"),  # of PEFT, about what the cases do on purpose
]

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6},
    "alpha_pattern": {"q_proj": 3, ".*layers.0.mlp.up_proj": 5},
}
LANES = (0, 1, 2, 1, 0)

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {"target_modules": LINEARS}),
    "rslora": ({}, {"target_modules": LINEARS, "use_rslora": True}),
    "dora": (BIASED, {"target_modules": LINEARS, "use_dora": True}),
    "patterns": ({}, {"target_modules": LINEARS, **PATTERNS}),
    "saved modules": (
        {},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    ),
    "all biases": (BIASED, {"target_modules": ["q_proj", "up_proj"], "bias": "all"}),
    "their biases": (BIASED, {"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"}),
    "bias of B": (BIASED, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "embedding and head": ({}, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "tied embedding": (TIED, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied head": (TIED, {"target_modules": ["q_proj", "lm_head"]}),
    "embedding, dora": ({}, {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_mixed_rows_equal_peft(llama_factory: Any, tmp_path: Path, case: str) -> None:
    from tests.models.lora.peft_adapters import logits_of, peft_adapter, torch_llama

    config, settings = CASES[case]
    loaded = llama_factory(**config)
    oracles = [torch_llama(loaded.model, loaded.config)]
    folders = [tmp_path / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        twin = torch_llama(loaded.model, loaded.config)
        oracles.append(peft_adapter(folder, twin, number, **{"r": 4, "lora_alpha": 8, **settings}))
    slots = slots_of(loaded.model, folders)
    for width in (1, 12):
        tokens = some_tokens(len(LANES), width)
        logits = mixed(loaded.model, slots, tokens, LANES)
        wanted = [logits_of(oracle, tokens) for oracle in oracles]
        assert apart(wanted[1], wanted[0]) > 0.1
        for row, lane in enumerate(LANES):
            assert apart(logits[row], wanted[lane][row]) < 1e-4, (row, lane)


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
