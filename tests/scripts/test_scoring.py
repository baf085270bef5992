"""logprobs.py and perplexity.py against plain mlx-lm."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import bench_models
import mlx.core as mx
import perplexity
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm import load

from tests.scripts.runner import run, succeed


@pytest.fixture(scope="module")
def direct(tiny: Path) -> Callable[[str], tuple[list[int], list[float]]]:
    """Token ids of a text, and the log-probabilities of all but the first by plain mlx-lm."""
    model, tokenizer, *_ = load(str(tiny))

    def compute(text: str) -> tuple[list[int], list[float]]:
        ids = list(tokenizer.encode(text))
        logits = model(mx.array([ids]))[0].astype(mx.float32)
        logprobs = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
        return ids, [row[token] for row, token in zip(logprobs[:-1], ids[1:], strict=True)]

    return compute


TEXT = " bapi bahi, Grüezi! 12 + 3\n\n" * 12


def test_logprobs_are_the_models(
    url: str, direct: Callable[[str], tuple[list[int], list[float]]]
) -> None:
    found = json.loads(succeed("logprobs.py", TEXT, "--url", url, "--json"))
    ids, expected = direct(TEXT)
    assert found["token_ids"] == ids
    assert found["logprobs"][0] is None
    assert found["logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert found["total"] == pytest.approx(sum(expected), abs=1e-2)


def test_perplexity_is_the_models(
    url: str, tmp_path: Path, direct: Callable[[str], tuple[list[int], list[float]]]
) -> None:
    documents = [TEXT, " babe bibi", "x"]
    file, out = tmp_path / "documents.jsonl", tmp_path / "out.json"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    succeed("perplexity.py", str(file), "--url", url, "--window", "2000", "--json", str(out))
    report = json.loads(out.read_text())
    scored = [direct(text)[1] for text in documents]
    for row, logprobs in zip(report["documents"], scored, strict=True):
        assert row["tokens"] == len(logprobs)
        assert row["nats"] == pytest.approx(-sum(logprobs), abs=1e-4 * max(1, len(logprobs)))
    everything = [value for logprobs in scored for value in logprobs]
    expected = math.exp(-sum(everything) / len(everything))
    assert report["total"]["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_perplexity_in_windows_has_the_context_it_promises(
    url: str, tmp_path: Path, direct: Callable[[str], tuple[list[int], list[float]]]
) -> None:
    text, out = bench_models.words(50, 1024, random.Random(2)), tmp_path / "out.json"
    (tmp_path / "text.txt").write_text(text)
    small = ["--window", "20", "--stride", "10", "--batch", "3", "--json", str(out)]
    succeed("perplexity.py", str(tmp_path / "text.txt"), "--url", url, *small)
    words = text.split(" ")[1:]
    # Windows 0..20, 10..30, ...: each scores what the one before did not.
    parts = [direct("".join(f" {w}" for w in words[s : s + 20]))[1] for s in range(0, 40, 10)]
    expected = sum(parts[0]) + sum(sum(part[9:]) for part in parts[1:])
    found = json.loads(out.read_text())["total"]
    assert found["tokens"] == 49
    assert found["nats"] == pytest.approx(-expected, abs=1e-2)


@given(st.integers(0, 200), st.integers(2, 60), st.data())
def test_windows_score_every_token_once(size: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    document = perplexity.Document("d", "", list(range(size)))
    scored: list[int] = []
    for part in perplexity.windows(document, window, stride):
        assert part.stop - part.start <= window
        assert part.first - part.start >= min(part.first, window - stride)
        scored += range(part.first, part.stop)
    assert scored == list(range(1, size))


def test_a_wrong_stride_is_told(url: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("bapi bahi")
    done = run(
        "perplexity.py", str(tmp_path / "text.txt"), "--url", url, "--window", "8", "--stride", "8"
    )
    assert done.returncode == 1
    assert "stride must be from 1 to 7" in done.stderr
