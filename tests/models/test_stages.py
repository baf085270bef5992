"""Layers divided over ranks: what a rank holds, and what cannot be divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models import loader
from mlx_parallm.models.adapting.stages import divide, held
from mlx_parallm.models.loader import load_model
from tests.models import architectures, checkpoints
from tests.models.test_shards import WIDE, group


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: Any = llama.Model(llama.ModelArgs.from_dict(WIDE))
    weights = dict(tree_flatten(model.parameters()))
    return checkpoints.write(tmp_path_factory.mktemp("wide"), WIDE, weights)


@pytest.mark.parametrize("quantize", [None, "4bit"])
@pytest.mark.parametrize("rank", range(3))
def test_a_rank_never_holds_the_whole_model(
    wide: Path, quantize: str | None, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_READ_AT_ONCE", 1_000_000)
    whole = load_model(str(wide), dtype="float32").nbytes
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    part = load_model(
        str(wide), dtype="float32", quantize=quantize, group=group(rank, 3), in_stages=True
    )
    peak = mx.get_peak_memory() - before
    assert part.nbytes < 0.36 * whole
    # Its layers, and what a few of its weights are packed from.
    assert peak < part.nbytes + 0.15 * whole


@pytest.mark.parametrize("size", [2, 3, 6])
def test_every_weight_is_on_one_rank_and_a_tied_head_on_two(wide: Path, size: int) -> None:
    whole = held(load_model(str(wide), dtype="float32").model)
    parts = [
        held(load_model(str(wide), dtype="float32", group=group(r, size), in_stages=True).model)
        for r in range(size)
    ]
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted([*whole, "model.embed_tokens.weight"])
    assert all(mx.array_equal(whole[name], part[name]) for part in parts for name in part)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_an_architecture_that_is_no_chain_is_refused_by_name(name: str) -> None:
    reason = f"--pipeline-parallel: the architecture '{name}' cannot be divided over ranks: "
    with pytest.raises(ModelLoadError, match=reason):
        divide(architectures.build(name), group(0, 2), architectures.config(name))


def test_more_ranks_than_layers_are_refused(wide: Path) -> None:
    with pytest.raises(ModelLoadError, match="--pipeline-parallel 7: the model has 6 layers only"):
        load_model(str(wide), group=group(0, 7), in_stages=True)
