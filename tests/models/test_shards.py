"""A model divided over ranks: what a rank holds, and what cannot be divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.adapting.shards import shard
from mlx_parallm.models.loader import load_model
from tests.models import architectures, checkpoints

WIDE = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 259,
    "tie_word_embeddings": True,
}


class OneOf:
    """Stands for a group of ranks where nothing is sent."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def group(rank: int, size: int) -> mx.distributed.Group:
    return cast(mx.distributed.Group, OneOf(rank, size))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: Any = llama.Model(llama.ModelArgs.from_dict(WIDE))
    weights = dict(tree_flatten(model.parameters()))
    return checkpoints.write(tmp_path_factory.mktemp("wide"), WIDE, weights)


@pytest.mark.parametrize("quantize", [None, "4bit"])
def test_a_rank_never_holds_the_whole_model(wide: Path, quantize: str | None) -> None:
    whole = load_model(str(wide), dtype="float32").nbytes
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    part = load_model(str(wide), dtype="float32", quantize=quantize, group=group(1, 4))
    peak = mx.get_peak_memory() - before
    assert part.nbytes < 0.3 * whole
    # The part, and one layer's weight at a time as it is read.
    assert peak < part.nbytes + 0.15 * whole


def test_the_parts_are_the_whole(wide: Path) -> None:
    weight = load_model(str(wide), dtype="float32").model.layers[0]
    parts = [
        load_model(str(wide), dtype="float32", group=group(rank, 2)).model.layers[0]
        for rank in range(2)
    ]
    outputs = mx.concatenate([part.mlp.up_proj.weight for part in parts], axis=0)
    inputs = mx.concatenate([part.mlp.down_proj.weight for part in parts], axis=1)
    assert mx.array_equal(outputs, weight.mlp.up_proj.weight)
    assert mx.array_equal(inputs, weight.mlp.down_proj.weight)


def test_an_architecture_without_a_way_is_refused_by_name(tmp_path: Path) -> None:
    model = architectures.build("gpt2")
    weights = dict(tree_flatten(model.parameters()))
    folder = checkpoints.write(tmp_path / "gpt2", architectures.config("gpt2"), weights)
    with pytest.raises(ModelLoadError, match="the architecture 'gpt2' cannot be divided"):
        load_model(str(folder), group=group(0, 2))


@pytest.mark.parametrize(
    ("size", "named"),
    [
        (3, "num_attention_heads is 8, num_key_value_heads is 4, intermediate_size is 2048"),
        (8, "num_key_value_heads is 4"),  # its columns could be divided, its heads cannot
    ],
)
def test_a_number_that_does_not_divide_is_refused(wide: Path, size: int, named: str) -> None:
    reason = f"--tensor-parallel {size}: this model cannot be divided by that number: {named}$"
    with pytest.raises(ModelLoadError, match=reason):
        load_model(str(wide), group=group(0, size))


def test_layers_that_cannot_be_divided_are_refused_by_name() -> None:
    name = "prism_hadamard_qwen35"
    with pytest.raises(ModelLoadError, match=f"'{name}' .* kind HadamardQuantizedLinear"):
        shard(architectures.build(name), group(0, 2), architectures.config(name))
