"""The benchmark and scoring scripts: their arithmetic, and short runs of the real things."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_models
import mlx.core as mx
import perplexity
import pytest
import soak
from benchlib import load_client
from benchlib.http import Answer, Connection
from benchlib.servers import SpawnError, mlx_lm_command, our_command, spawn
from benchlib.table import format_table, percentile, ratio
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm import load

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random model."""
    return bench_models.ensure("tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def url(tiny: Path) -> Iterator[str]:
    """A running server of it."""
    with spawn("tiny", our_command(tiny)) as server:
        yield server.url


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


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does."""
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


def succeed(name: str, *arguments: str) -> str:
    done = run(name, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "125m"])
def test_a_word_is_a_token(name: str) -> None:
    size = bench_models.SHAPES[name].vocabulary
    tokenizer = bench_models._tokenizer(size)
    assert tokenizer.get_vocab_size() == size
    text = bench_models.words(300, size, random.Random(1))
    ids = tokenizer.encode(text).ids
    assert len(ids) == 300
    assert len(set(ids)) > 100
    assert tokenizer.decode(ids) == text


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = bench_models._tokenizer(1024)
    text = "Grüezi, 日本 🙂\n\tbabelo"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_model_is_made_once_and_a_wrong_name_is_told(tiny: Path) -> None:
    made = (tiny / "model.safetensors").stat().st_mtime_ns
    assert bench_models.ensure("tiny", tiny) == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="tiny, 27m, 125m"):
        bench_models.ensure("7b")


# --- measuring answers --------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def event(text: str, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text}], **more}).encode() + b"\n\n"


def chunked(*parts: bytes) -> list[bytes]:
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""]]


def reply(*pieces: tuple[float, bytes]) -> load_client.Reply:
    return load_client.Reply(started=10.0, pieces=list(pieces))


def test_times_of_a_chunked_stream() -> None:
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    parts = [event("a"), event("b"), event("", **usage), b"data: [DONE]\n\n"]
    first, second, third, done, end = chunked(*parts)
    found = load_client.measure(
        reply(
            (10.5, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + first),
            (11.0, second[:20]),  # an event counts when the last of it has come
            (11.5, second[20:]),
            (12.0, third + done + end),
        )
    )
    assert found == load_client.Measured(2.0, 0.5, [1.0], 7, 5, "")


def test_a_stream_without_lengths_and_with_comments() -> None:
    found = load_client.measure(
        reply(
            (11.0, HEAD + b"\r\n: keepalive 1/2\n\n"),
            (12.0, event("a") + event("b")),
            (13.0, event("c") + b"data: [DONE]\n\n"),
        )
    )
    assert found == load_client.Measured(3.0, 2.0, [0.0, 1.0], 0, 3, "")


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([], "no complete HTTP header"),
        ([HEAD + b"\r\n" + event("a")], "cut off"),
        ([b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"], "bad answer"),
        ([b"HTTP/1.1 429 X\r\n\r\n" + b'{"error": {"message": "full"}}'], "status 429"),
        ([HEAD + b"\r\n" + b'data: {"error": "lost"}\n\ndata: [DONE]\n\n'], "lost"),
    ],
)
def test_an_incomplete_answer_is_an_error(pieces: list[bytes], error: str) -> None:
    found = load_client.measure(reply(*((11.0, piece) for piece in pieces)))
    assert error in found.error


def test_figures() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([float(value) for value in range(100)], 0.95) == 95
    assert percentile([1, 2], 1.0) == 2
    assert ratio(3, 2) == 1.5
    assert ratio(3, 0) is None
    assert format_table([{"a": 1}, {"a": None, "b": "xy"}]).splitlines() == [
        "| a | b  |",
        "|---|----|",
        "| 1 | -  |",
        "| - | xy |",
    ]


# --- servers ------------------------------------------------------------------------------


def test_a_server_that_does_not_start_is_told_with_its_log() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(SpawnError, match="no such model"), spawn("broken", command):
        pass


def test_mlx_lm_gets_the_same_blas_only_when_asked(tiny: Path) -> None:
    assert "blas.preload()" in mlx_lm_command(tiny, fast_blas=True)[2]
    assert mlx_lm_command(tiny, fast_blas=False)[1:4] == ["-m", "mlx_lm", "server"]


# --- short runs ---------------------------------------------------------------------------


def test_bench_serving_compares_with_mlx_lm(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = ["--concurrency", "2,3", "--requests", "3", "--rounds", "2", "--output-tokens", "8"]
    printed = succeed(
        "bench_serving.py", "--against", "mlx_lm", "--no-stock", "--model-path", str(tiny),
        "--prompt-tokens", "20", *small, "--json", str(out),
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert [(row["server"], row["clients"]) for row in report["results"]] == [
        ("mlx_parallm", 2), ("mlx_lm", 2), ("mlx_parallm", 3), ("mlx_lm", 3),
    ]  # fmt: skip
    for row in report["results"]:
        assert (row["requests"], row["failed"], row["prompt"]) == (6, 0, 20)
        assert row["tokens/s"] > 0
        assert 0 < row["first ms p50"] <= row["first ms p95"] <= row["answer ms p99"]
        assert row["client cpu"] > 0
    ours = [row for row in report["results"] if row["server"] == "mlx_parallm"]
    assert {row["output"] for row in ours} == {8}
    assert report["ratios"][0]["throughput"] > 0
    assert "mlx_parallm / mlx_lm" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--rate", "50", "--shared-prefix", "0.5", "--sampling", "mixed"],
        ["--no-stream", "--prompt-format", "ids"],
        ["--endpoint", "chat", "--sampling", "top_p"],
    ],
    ids=["poisson", "whole", "chat"],
)
def test_bench_serving_options(url: str, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out.json"
    small = ["--concurrency", "3", "--requests", "6", "--rounds", "1", "--output-tokens", "6"]
    succeed("bench_serving.py", "--url", f"it={url}", *small, *options, "--json", str(out))
    (row,) = json.loads(out.read_text())["results"]
    assert (row["server"], row["requests"], row["failed"], row["output"]) == ("it", 6, 0, 6)
    assert (row["first ms p50"] is None) == ("--no-stream" in options)


def test_bench_serving_fails_with_its_server(url: str) -> None:
    small = ["--concurrency", "1", "--requests", "1", "--rounds", "1"]
    done = run("bench_serving.py", "--url", url, "--model", "other", *small)
    assert done.returncode == 1
    assert "status 404" in done.stderr


def test_bench_engine_runs_its_scenarios(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    listed = [line.split()[0] for line in succeed("bench_engine.py", "--list").splitlines()]
    # These run the bundled models on long tasks, whatever --model-path says: minutes.
    names = [name for name in listed if name not in ("speculation", "table")]
    small = ["--quick", "--model-path", str(tiny), "--json", str(out)]
    succeed("bench_engine.py", *small, "--scenario", *names)
    found = json.loads(out.read_text())["scenarios"]
    assert list(found) == names
    numbers = [v for rows in found.values() for row in rows for v in row.values()]
    assert all(math.isfinite(v) and v >= 0 for v in numbers if isinstance(v, (int, float)))
    assert found["budget"][0]["finished"] == 64
    assert {row["side"] for row in found["greedy"]} == {
        "mlx_parallm", "BatchGenerator", "plain loop",
    }  # fmt: skip


# --- soak ---------------------------------------------------------------------------------


def test_soak(tiny: Path) -> None:
    printed = succeed("soak.py", "--model-path", str(tiny), "--seconds", "6", "--rounds", "2")
    assert "all held" in printed


BODY: dict[str, Any] = {"prompt": "a", "max_tokens": 4, "n": 2}
USAGE = {"usage": {"completion_tokens": 8}}


def ends(*indices: int, **more: Any) -> bytes:
    choices = [{"index": i, "text": "x", "finish_reason": "length"} for i in indices]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (ends(0, 1, **USAGE), "cut off"),
        (ends(0, **USAGE) + b"data: [DONE]\n\n", "ended the choices"),
        (ends(0, 1, 1, **USAGE) + b"data: [DONE]\n\n", "ended the choices"),
        (ends(0, 1) + b"data: [DONE]\n\n", "0 usages"),
        (ends(0, 1, usage={"completion_tokens": 9}) + b"data: [DONE]\n\n", "took 9 tokens"),
    ],
)
def test_soak_sees_a_broken_stream(body: bytes, complaint: str) -> None:
    it = soak.Soak(Connection("http://127.0.0.1:1"), "m", 0, 1)
    with pytest.raises(soak.Broken, match=complaint):
        it._check_stream(BODY, Answer(200, {}, body))
    it._check_stream(BODY, Answer(200, {}, ends(0, 1, **USAGE) + b"data: [DONE]\n\n"))


class Scripted(Connection):
    """A connection whose server always says the same."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("http://127.0.0.1:1")
        self.answer = answer

    async def get(self, path: str) -> Answer:
        return self.answer

    async def post(self, path: str, body: bytes) -> Answer:
        return self.answer


def engine(**counts: int) -> Answer:
    idle = dict.fromkeys(
        ["running", "waiting", "rows", "accepted", "finished", "aborted", "failed"], 0
    )
    return Answer(200, {}, json.dumps({"engine": idle | counts}).encode())


def test_soak_sees_what_is_left_at_rest() -> None:
    def rest(**counts: int) -> None:
        it = soak.Soak(Scripted(engine(**counts)), "m", 0, 1, rest_s=0.3)
        asyncio.run(it._rest())

    rest(accepted=5, finished=4, aborted=1)
    with pytest.raises(soak.Broken, match="5 sequences were accepted and 4 ended"):
        rest(accepted=5, finished=4)
    with pytest.raises(soak.Broken, match="1 sequences failed"):
        rest(accepted=5, finished=4, failed=1)
    with pytest.raises(soak.Broken, match="does not come to rest"):
        rest(rows=1)


def test_soak_sees_a_changed_answer_and_a_kind_reception_of_nonsense() -> None:
    answer = Answer(200, {}, json.dumps({"choices": [{"index": 0, "text": "x"}]}).encode())
    it = soak.Soak(Scripted(answer), "m", 0, 1, probes=[({"prompt": "a"}, "y")])
    with pytest.raises(soak.Broken, match="alone it was 'y'"):
        asyncio.run(it._probe(random.Random(0)))
    with pytest.raises(soak.Broken, match="answered with 200"):
        asyncio.run(it._nonsense(random.Random(0)))


# --- scoring ------------------------------------------------------------------------------

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
