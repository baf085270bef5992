"""`mlx_parallm_check` passes what is right and fails what is not; --strict refuses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlx_parallm import cli
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import load_model, resolve
from mlx_parallm.tools.check import main
from mlx_parallm.tools.checks.answers import Answer
from mlx_parallm.tools.checks.numbers import QUICK, Reference, number_findings
from tests.waiting import PATIENCE_S

FIGURES = ("tokenizer", "stop tokens", "against mlx_lm", "4 rows against 1", "perplexity", "memory")


def test_the_bundled_model_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert main(["--quick", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("passed\n")
    found = json.loads(file.read_text())
    assert found["passed"]
    assert found["model"]["type"] == "llama"
    rows = {row["name"]: row for row in found["findings"]}
    assert rows.keys() >= set(FIGURES)
    assert all(name in shown for name in FIGURES)
    assert rows["against mlx_lm"]["values"] == {
        "prompts": 4,
        "different": 0,
        "ties": 0,
        "largest": pytest.approx(0, abs=1e-3),
    }
    assert rows["  it knows"]["values"] == {"system": True, "tools": True, "thinking": True}


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """The bundled model with a template whose turns end with a token that ends nothing."""
    folder = tmp_path / "endless"
    shutil.copytree(resolve("bundled"), folder, ignore=shutil.ignore_patterns("draft"))
    file = folder / "tokenizer_config.json"
    data = json.loads(file.read_text())
    data["chat_template"] = data["chat_template"].replace("<|im_end|>", "<|endoftext|>")
    file.write_text(json.dumps(data))
    return folder


def test_a_model_whose_chats_run_on_fails(
    endless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--json", "--model-path", str(endless)]) == 1
    found = json.loads(capsys.readouterr().out)
    failed = [row["name"] for row in found["findings"] if row["passed"] is False]
    assert failed == ["stop tokens"]


def test_strict_refuses_it(endless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--model-path", str(endless), "--port", "0", "--strict"]) == 1
    assert "fails its checks: stop tokens: " in capsys.readouterr().err


def test_what_mlx_lm_says_otherwise_fails() -> None:
    engine = Engine(lambda: load_model("bundled"), EngineConfig(max_batch_size=4))
    engine.start()
    engine.wait_ready(PATIENCE_S)
    try:
        ids = [5, 6, 7, 8, 9]
        other = Answer([1, 2, 3], [-0.1] * 3, [5.0] * 3)
        reference = Reference([ids] * 2, [other] * 2, ids, -1.0)
        found = {row.name: row for row in number_findings(engine, reference, QUICK)}
    finally:
        engine.stop()
    assert found["against mlx_lm"].passed is False
    assert found["against mlx_lm"].values["different"] == 2
    assert found["4 rows against 1"].passed
    assert found["perplexity"].passed is False


def test_no_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-path", "./nowhere"]) == 1
    assert "no such folder" in capsys.readouterr().err
