"""What needs torch: TRL learns from this server's samples, and their chances are torch's.

In full: scripts/train_with_trl.py and scripts/logprob_mismatch.py. Here a few steps of both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import logprob_mismatch
import pytest
import train_with_trl

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import load_model
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.waiting import PATIENCE_S


def test_the_task_is_told_apart() -> None:
    asked, kept = train_with_trl.heroes(16)
    assert len(asked) == 48 and len(kept) == 16 and not set(asked) & set(kept)
    hero = train_with_trl.Hero("brave", "goat")
    assert hero.reward("Once there was a brave goat named Ida.") == 1
    assert hero.reward("Once there was a old goat named Ida.") == 0


def test_without_the_packages_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.argv = sys.argv[:1]; import train_with_trl as t; "
        "t.NEEDED = ('no_such_package',); sys.exit(t.main())"
    )
    scripts = Path(train_with_trl.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(scripts)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1 and "[rl]" in done.stderr


@pytest.mark.parametrize("model", ["bundled"])
def test_processed_logprobs_are_torchs(model: str) -> None:
    pytest.importorskip("torch")
    rows = logprob_mismatch.measure(logprob_mismatch.BUNDLED, 1, 12)
    assert len(rows) == len(logprob_mismatch.SETTINGS)
    for row in rows:
        assert row["tokens"] == 12
        assert float(row["processed"]) <= 1e-4, row
        assert float(row["raw"]) <= 1e-4, row
    assert sum(row["ties at a cut"] for row in rows) < 40
    assert max(float(row["raw taken for processed"]) for row in rows) > 0.05


@pytest.fixture
def url() -> Iterator[str]:
    """A server of the bundled model."""
    from tests.server.conftest import Served

    engine = Engine(lambda: load_model("bundled"), EngineConfig(max_lora_rank=16))
    served = Served(create_app(Settings(), engine), engine, 0.5)
    served.wait_ready()
    yield served.url
    served.stop()
    served.join()


@pytest.mark.filterwarnings("ignore")  # of those packages
def test_trl_learns_from_our_samples(url: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("trl")
    arguments = ["--url", url, "--steps", "4", "--prompts", "4", "--group", "8"]
    options: argparse.Namespace = train_with_trl.parse(arguments)
    policy = train_with_trl.Policy(url, options.name, options.max_tokens)
    with tempfile.TemporaryDirectory() as folder:
        found = train_with_trl.train(policy, Path(folder), options)
    assert found["steps"] == 4 and found["samples"] == 128
    assert found["largest_gap_nats"] < 1e-4
    adapter = httpx.get(f"{url}/v1/adapters/{options.name}", timeout=PATIENCE_S).json()
    assert adapter["version"] == 5, "each step's, and the last one"
