"""lm_eval's own command line against a real server, on local tasks.

Accuracies look normal when log-likelihoods are wrong by whole nats, so every single
log-likelihood is compared with a direct computation.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_S

HERE = Path(__file__).parent
TASKS = "parallm_choices,parallm_documents,parallm_continue"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (extra: dev)"
)


# The command line, several times in one process: most of its time is importing.
_COMMANDS = """
import json, sys
from lm_eval.__main__ import cli_evaluate

for arguments in json.load(sys.stdin):
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
"""


@pytest.fixture(scope="module")
def folders(
    server_url: str, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What lm_eval logged, for prompts sent as token ids and as strings."""
    out = tmp_path_factory.mktemp("lm_eval")
    found = {"ids": out / "ids", "strings": out / "strings"}
    commands = [
        _arguments(server_url, model_folder, folder, name == "ids")
        for name, folder in found.items()
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out), "HF_HOME": str(out)}
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS],
        input=json.dumps(commands),
        cwd=HERE,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return found


def _arguments(server_url: str, model_folder: Path, out: Path, ids: bool) -> list[str]:
    """Of lm_eval's command line."""
    settings = {
        "model": "tiny",
        "base_url": f"{server_url}/v1/completions",
        "tokenizer": str(model_folder),
        "tokenizer_backend": "huggingface",
        "tokenized_requests": str(ids),
        "num_concurrent": "4",
        "max_retries": "1",
        "max_length": "128",
    }
    command = ["--model", "local-completions"]
    command += ["--model_args", ",".join(f"{k}={v}" for k, v in settings.items())]
    command += ["--include_path", "lm_eval_tasks", "--tasks", TASKS, "--batch_size", "2"]
    return [*command, "--output_path", str(out), "--log_samples"]


@pytest.fixture(scope="module", params=["ids", "strings"])
def samples(
    request: pytest.FixtureRequest, folders: dict[str, Path]
) -> dict[str, list[dict[str, Any]]]:
    """What lm_eval logged, by task."""
    return {
        file.name.split("_parallm_")[1].split("_")[0]: [
            json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()
        ]
        for file in folders[request.param].rglob("samples_parallm_*.jsonl")
    }


def test_log_likelihoods_of_choices(samples: dict[str, list[dict[str, Any]]], oracle: Any) -> None:
    rows = samples["choices"]
    assert len(rows) == 8
    for row in rows:
        question = row["doc"]["question"]
        found = [(float(value), greedy == "True") for value, greedy in _pairs(row)]
        expected = [_continuation(oracle, question, " " + c) for c in row["doc"]["choices"]]
        assert [value for value, _ in found] == pytest.approx(
            [value for value, _ in expected], abs=1e-4
        )
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_log_likelihoods_of_documents(
    samples: dict[str, list[dict[str, Any]]], oracle: Any
) -> None:
    rows = samples["documents"]
    assert len(rows) == 4
    for row in rows:
        # lm_eval puts the end token in front, so that the first token has a probability too.
        ids = [oracle.tokenizer.eos_token_id, *oracle.encode(row["doc"]["text"])]
        (found,) = row["filtered_resps"]
        value = float(found[0] if isinstance(found, list) else found)
        assert value == pytest.approx(sum(oracle.logprobs(ids)), abs=1e-4)


def test_generated_texts(samples: dict[str, list[dict[str, Any]]], oracle: Any) -> None:
    rows = samples["continue"]
    assert len(rows) == 4
    for row in rows:
        (found,) = row["filtered_resps"]
        assert found == oracle.generate(row["doc"]["text"], 8).split("\n\n")[0]


def _pairs(row: dict[str, Any]) -> list[Any]:
    """(log-likelihood, is greedy) of each choice."""
    return list(row["filtered_resps"])


def _continuation(oracle: Any, context: str, continuation: str) -> tuple[float, bool]:
    """Log-likelihood of a continuation, and whether it is what greedy decoding gives."""
    # As lm_eval has it: spaces at the border belong to the continuation.
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    ids = oracle.encode(context + continuation)
    first = len(oracle.encode(context))
    rows = oracle.distribution(ids)[first - 1 : -1]
    chosen = [row[token] for row, token in zip(rows, ids[first:], strict=True)]
    return sum(chosen), all(c == max(row) for c, row in zip(chosen, rows, strict=True))
