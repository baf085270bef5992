"""Our engine against transformers on torch: one table row for each family."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from against_torch.forms import FAMILIES, family_of, publish_weights, write_published
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.vision.picture import Picture
from tests.engine.driver import Driver
from tests.engine.pictures.seeing import PICTURE, sequence_of, with_placeholders
from tests.models.vision.tiny_vision import picture

TEXT = f"user: Here is {PICTURE} and there {PICTURE}\nWhat differs?\nassistant:"
TOKENS = 8
_SAID = Path(__file__).with_name("said.py")
_SIZES = ((50, 60), (40, 64))
# torchvision, which transformers resizes these families' with, rounds otherwise than Pillow.
_UNRESIZED = {
    "lfm2_vl": ((32, 64), (48, 32)),
    **dict.fromkeys(("gemma4", "gemma4:larger", "gemma4_unified"), ((112, 160), (128, 128))),
}


def rows(python: str) -> list[dict[str, object]]:
    """Largest errors of log-probabilities.

    Args:
        python: an interpreter that has torch, torchvision, transformers and Pillow.
    """
    with TemporaryDirectory(prefix="against-torch-") as folder:
        place = Path(folder)
        _ask_transformers(python, place)
        return [_row(name, place / name) for name in FAMILIES]


def _ask_transformers(python: str, place: Path) -> None:
    jobs = []
    for name in FAMILIES:
        (place / name).mkdir()
        write_published(name, place / name / "published")
        files = [place / name / f"{number}.npy" for number in range(len(_SIZES))]
        for file, one in zip(files, _pictures(name), strict=True):
            np.save(file, one.pixels)
        jobs.append(
            {
                "folder": str(place / name / "published"),
                "saved": str(place / name / "saved"),
                "text": with_placeholders(family_of(name), TEXT),
                "pictures": [str(file) for file in files],
                "tokens": TOKENS,
                "result": str(place / name / "said.npz"),
            }
        )
    (place / "jobs.json").write_text(json.dumps(jobs))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [python, str(_SAID), str(place / "jobs.json")],
        check=True,
        env={**clean, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )


def _pictures(name: str) -> list[Picture]:
    sizes = _UNRESIZED.get(name, _SIZES)
    return [picture(seed, *size) for seed, size in enumerate(sizes, 1)]


def _row(name: str, place: Path) -> dict[str, object]:
    failed = place / "said.txt"
    if failed.is_file():
        return {"family": name, "as published": failed.read_text().splitlines()[-1][:90]}
    publish_weights(place / "saved", place / "published")
    expected = dict(np.load(place / "said.npz"))
    return {
        "family": name,
        "as published": _error(name, place / "published", expected),
        "as saved by transformers": _error(name, place / "saved", expected),
    }


def _error(name: str, folder: Path, expected: dict[str, Any]) -> str:
    try:
        return _largest_error(name, folder, expected)
    except ModelLoadError as error:
        return str(error).replace(str(folder), "")[:200]


def _largest_error(name: str, folder: Path, expected: dict[str, Any]) -> str:
    """In the prompt and the answer."""
    with _engine(folder) as engine:
        driver = Driver(engine)
        settings = {"max_tokens": TOKENS, "ignore_eos": True, "logprobs": 0, "prompt_logprobs": 0}
        sequence = sequence_of(engine, family_of(name), TEXT, _pictures(name), **settings)
        driver.run(sequence)
        if list(sequence.prompt) != expected["ids"].tolist():
            return "another prompt"
        scores = [s.logprob for s in driver.prompt_logprobs(sequence) or () if s is not None]
        said = [score.logprob for score in driver.logprobs(sequence)]
        if driver.tokens(sequence) != expected["tokens"].tolist():
            return "other tokens"
        apart = np.array(scores + said) - np.concatenate([expected["scores"], expected["logprobs"]])
        return f"{np.abs(apart).max():.1e}"


@contextmanager
def _engine(folder: Path) -> Iterator[Engine]:
    config = EngineConfig(max_batch_size=8, kv_cache_memory=64 << 20)
    engine = Engine(lambda: load_model(str(folder)), config)
    engine.start()
    engine.wait_ready()
    try:
        yield engine
    finally:
        engine.stop()
