"""Adapters of mlx-lm, mixed in one forward, against mlx-lm's own unfused layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_map
from mlx_lm.models import mixtral

from tests.models.lora.adapters import ALL, mlx_lm_adapter, with_mlx_lm
from tests.models.lora.forwards import Note, apart, fill, mixed, note, pack, slots_of, some_tokens

pytestmark = pytest.mark.usefixtures("no_compile")

LANES = (0, 1, 2, 3, 1, 0)
EXPERTS = tuple(f"block_sparse_moe.switch_mlp.{n}_proj" for n in ("gate", "up", "down"))
TIED = ("self_attn.q_proj", "model.embed_tokens")
Make = Callable[[], Any]

CASES = {
    "lora": ("plain", ALL, "lora"),
    "lora, biased": ("biased", ALL, "lora"),
    "dora": ("biased", ALL, "dora"),
    "lora, packed": ("packed", ALL, "lora"),
    "dora, packed": ("packed", ALL, "dora"),
    "lora, packed 8": ("packed 8", ALL, "lora"),
    "dora, packed 8": ("packed 8", ALL, "dora"),
    "lora, mxfp4": ("packed mxfp4", ALL, "lora"),
    "lora, packed, biased": ("packed biased", ALL, "lora"),
    "dora, packed, biased": ("packed biased", ALL, "dora"),
    "embedding": ("plain", TIED, "lora"),
    "embedding, packed": ("packed", TIED, "lora"),
    "embedding, tied, packed": ("packed tied", TIED, "lora"),
    "embedding, tied": ("tied", TIED, "lora"),
    "embedding, tied, dora": ("tied", TIED, "dora"),
    "head": ("plain", ("lm_head", "self_attn.v_proj"), "lora"),
    "head, packed": ("packed", ("lm_head", "self_attn.v_proj"), "lora"),
    "head, dora": ("plain", ("lm_head", "self_attn.v_proj"), "dora"),
    "experts": ("experts", ("self_attn.q_proj", *EXPERTS), "lora"),
    "experts, packed": ("packed experts", EXPERTS, "lora"),
}


@pytest.fixture
def make(llama_factory: Any) -> Callable[[str], Any]:
    def of(name: str) -> Any:
        if "experts" in name:
            model = tiny_mixtral()
        else:
            config = {"tied": {"tie_word_embeddings": True}, "biased": {"attention_bias": True}}
            model = llama_factory(**config.get(name.split()[-1], {})).model
        return pack(model, name)

    return of


def tiny_mixtral() -> Any:
    args = mixtral.ModelArgs(
        model_type="mixtral",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=259,
    )
    model, rng = mixtral.Model(args), np.random.default_rng(0)

    def draw(value: mx.array) -> mx.array:
        return mx.array(rng.normal(size=value.shape).astype(np.float32) * 0.3)

    model.update(tree_map(draw, model.parameters()))
    model.eval()
    return model


@pytest.mark.parametrize("case", CASES)
def test_mixed_rows_equal_unfused_models(
    make: Callable[[str], Any], tmp_path: Path, case: str, record_property: Note
) -> None:
    """Three adapters of different ranks beside base rows; one token a row, and many."""
    name, keys, kind = CASES[case]
    folders = [
        mlx_lm_adapter(tmp_path / str(n), make(name), n, keys=list(keys), rank=2 + 2 * n, kind=kind)
        for n in range(3)
    ]
    model = make(name)
    slots = slots_of(model, folders)
    oracles = [make(name), *(with_mlx_lm(make(name), folder) for folder in folders)]
    error = 0.0
    for width in (1, 40):  # few tokens are not sorted by their experts, many are
        tokens = some_tokens(len(LANES), width)
        logits = mixed(model, slots, tokens, LANES)
        wanted = [oracle(mx.array(tokens)) for oracle in oracles]
        assert apart(wanted[1], wanted[0]) > 0.1
        for row, lane in enumerate(LANES):
            error = max(error, apart(logits[row], wanted[lane][row]))
        assert error < 1e-4
        assert apart(model(mx.array(tokens)), wanted[0]) < 1e-6  # nobody has an adapter
    note(record_property, f"{kind}: {_where(keys)}", "mlx-lm", name, "mlx-lm, unfused", error)


def _where(keys: tuple[str, ...]) -> str:
    """The modules of a case, in words."""
    words = {"embed_tokens": "embedding", "lm_head": "head", "switch_mlp": "experts"}
    found = [word for name, word in words.items() if any(name in key for key in keys)]
    return ", ".join(found) if found else "attention and MLP"


def test_whole_weights(make: Callable[[str], Any], tmp_path: Path, record_property: Note) -> None:
    """mlx-lm's fine_tune_type "full": other weights for some modules, on a packed base."""
    donor = make("plain")
    names = ("model.layers.1.mlp.up_proj.weight", "model.norm.weight")
    weights = dict(nn.utils.tree_flatten(donor.parameters()))
    mx.save_safetensors(
        str(tmp_path / "adapters.safetensors"), {name: weights[name] * 1.5 for name in names}
    )
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "full", "num_layers": 1}')
    model, oracle = make("packed"), make("packed")
    layer = oracle.model.layers[1].mlp
    layer.up_proj = nn.Linear(32, 48, bias=False)
    layer.up_proj.weight = weights[names[0]] * 1.5
    oracle.model.norm.weight = weights[names[1]] * 1.5
    tokens = some_tokens(2, 5)
    logits = mixed(model, slots_of(model, [tmp_path]), tokens, (1, 0))
    error = apart(logits[0], oracle(mx.array(tokens))[0])
    assert error < 1e-4
    note(record_property, "full: MLP and norm", "mlx-lm", "packed", "mlx-lm", error)
    assert apart(logits[1], make("packed")(mx.array(tokens))[1]) < 1e-6


def test_a_slot_is_used_again(make: Callable[[str], Any], tmp_path: Path) -> None:
    """Nothing of an adapter stays behind, whatever the next one changes."""
    first = mlx_lm_adapter(tmp_path / "1", make("plain"), 1, keys=list(ALL), kind="dora", rank=8)
    second = mlx_lm_adapter(tmp_path / "2", make("plain"), 2, keys=["self_attn.v_proj"])
    model = make("plain")
    slots = slots_of(model, [first, first])
    fill(slots, 1, second)
    tokens = some_tokens(2, 4)
    logits = mixed(model, slots, tokens, (1, 2))
    for row, folder in enumerate((second, first)):
        wanted = with_mlx_lm(make("plain"), folder)(mx.array(tokens))
        assert apart(logits[row], wanted[row]) < 1e-4
    slots.clear(1)
    slots.clear(2)
    assert slots.nbytes == 0
