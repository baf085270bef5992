"""Prefixes with pictures survive a restart on disk, and are apart for each adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_vlm")

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.reader import read_folder
from tests.engine.driver import Driver
from tests.engine.pictures.seeing import PICTURE, engine_of, sequence_of
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.models.vision.tiny_vision import folder_of, picture

FAMILY = "qwen3_vl"
TEXT = f"user: {'Look closely. ' * 6}{PICTURE} What is it, and what is around it?\nassistant:"
TOLERANCE = 1e-3

pytestmark = pytest.mark.usefixtures("no_compile")


def asking(engine: Engine, seed: int) -> Sequence:
    settings: dict[str, Any] = {"ignore_eos": True, "logprobs": 0}
    return sequence_of(engine, FAMILY, TEXT, [picture(seed)], **settings)


def said(engine: Engine, *sequences: Sequence) -> np.ndarray:
    """(sequences, 8) log-probabilities of what is answered."""
    driver = Driver(engine).run(*sequences)
    assert all(driver.end(sequence).error is None for sequence in sequences)
    return np.array([[s.logprob for s in driver.logprobs(one)] for one in sequences])


def test_pages_of_pictures_come_back_from_disk(tmp_path: Path) -> None:
    first = engine_of(FAMILY, prefix_cache_dir=tmp_path)
    try:
        expected = said(first, asking(first, 1), asking(first, 2))
    finally:
        first.stop()
    second = engine_of(FAMILY, prefix_cache_dir=tmp_path)
    try:
        again = [asking(second, seed) for seed in (2, 1, 3)]
        found = said(second, *again)
    finally:
        second.stop()
    assert np.abs(found[:2] - expected[::-1]).max() < TOLERANCE
    assert np.abs(found[2] - expected).max(axis=1).min() > TOLERANCE
    # What is before the picture came back with the first of them.
    assert again[0].ledger.from_disk > again[1].ledger.from_disk > again[2].ledger.from_disk


def test_rows_with_pictures_have_adapters(tmp_path: Path) -> None:
    model = load_model(str(folder_of(FAMILY))).model
    modules = Modules(load_model(str(folder_of(FAMILY))).model)
    folder = mlx_lm_adapter(tmp_path / "adapter", model, 1, keys=list(ALL))
    weights = read_folder(folder, modules, 16)
    engine, plain = engine_of(FAMILY), engine_of(FAMILY, prefix_cache_memory=0)
    try:
        # Whether an adapter is on the device is kept in it: each engine has its own.
        adapters = {id(one): Adapter("one", 1, weights) for one in (engine, plain)}

        def rows(one: Engine) -> list[Sequence]:
            made = [asking(one, seed) for seed in (1, 1, 2, 2)]
            for sequence in made[1::2]:
                sequence.use(adapters[id(one)])
            return made

        together = said(engine, *rows(engine))
        assert np.abs(said(engine, *rows(engine)) - together).max() < TOLERANCE, "from the cache"
        alone = np.concatenate([said(plain, sequence) for sequence in rows(plain)])
    finally:
        engine.stop()
        plain.stop()
    assert np.abs(together - alone).max() < TOLERANCE
    assert np.abs(together[0] - together[1]).max() > TOLERANCE, "the adapter is heard"
