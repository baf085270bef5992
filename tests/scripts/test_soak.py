"""soak.py sees what it looks for, and finds nothing in a sound server."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soak
from benchlib.http import Answer, Connection
from soaking.asked import ADAPTER, Asked, any_request, same
from soaking.levels import Level, growth

from tests.scripts.runner import succeed


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

    async def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
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
    with pytest.raises(soak.Broken, match="does not come to rest"):
        rest(prefix_pages_held=1)


def test_a_rest_ends_in_its_time_however_slow_the_server_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = [0.0], list[str]()

    class Slow(Scripted):
        async def get(self, path: str) -> Answer:
            now[0] += 50
            asked.append(path)
            return await super().get(path)

    monkeypatch.setattr(soak, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with pytest.raises(soak.Broken, match="does not come to rest"):
        asyncio.run(soak.Soak(Slow(engine(rows=1)), "m", 0, 1)._rest())
    assert len(asked) == 3


def test_a_request_without_an_answer_is_named() -> None:
    async def run() -> None:
        goes_on = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await goes_on.wait()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            connection = Connection(f"http://127.0.0.1:{port}", timeout_s=0.2)
            with pytest.raises(TimeoutError, match="POST /v1/completions the body"):
                await connection.post("/v1/completions", b"the body")
            goes_on.set()

    asyncio.run(run())


def test_soak_sees_a_changed_answer_and_a_kind_reception_of_nonsense() -> None:
    answer = Answer(200, {}, json.dumps({"choices": [{"index": 0, "text": "x"}]}).encode())
    it = soak.Soak(Scripted(answer), "m", 0, 1, probes=[({"prompt": "a"}, "y")])
    with pytest.raises(soak.Broken, match="alone it was 'y'"):
        asyncio.run(it._probe(random.Random(0)))
    with pytest.raises(soak.Broken, match="answered with 200"):
        asyncio.run(it._nonsense(random.Random(0)))


def test_soak_sees_an_answer_that_differs_alone() -> None:
    answer = Answer(200, {}, json.dumps({"choices": [{"text": "x"}]}).encode())
    it = soak.Soak(Scripted(answer), "m", 0, 1)
    asked = Asked("/v1/completions", {}, lambda found: found["choices"][0]["text"])
    it._kept = [(asked, "x")]
    asyncio.run(it._check_kept())
    it._kept = [(asked, "y")]
    with pytest.raises(soak.Broken, match="said 'y', and alone 'x'"):
        asyncio.run(it._check_kept())


def test_soak_sees_what_grows() -> None:
    def rests(resident: list[int], threads: int = 0, descriptors: int = 0) -> str | None:
        levels = [
            Level(mib << 20, 20 + threads * at, 30 + descriptors * at)
            for at, mib in enumerate(resident)
        ]
        return growth(levels)

    assert rests([300]) is None
    assert rests([100, 300, 310, 305, 320, 300]) is None  # caches fill at first
    assert "resident grew" in str(rests([100, 300, 400, 500, 600, 700]))
    assert "threads grew" in str(rests([300] * 12, threads=1))
    assert "descriptors grew" in str(rests([300] * 12, descriptors=1))
    assert rests([300, 420, 300, 420, 300, 420]) is None  # it breathes


@pytest.mark.parametrize("seed", range(3))
def test_soak_asks_for_everything(seed: int) -> None:
    rng = random.Random(seed)
    asked = [any_request(rng, "m", memories=True, adapter=True, tools=True) for _ in range(300)]
    assert len({one.path for one in asked}) == 6
    assert {one.body.get("model") for one in asked} == {"m", ADAPTER}
    for name in ("memory", "tools", "response_format", "structured_outputs", "seed", "store"):
        assert any(name in one.body for one in asked)


def test_same_allows_for_a_last_digit() -> None:
    assert same([("a", 1.001, None)], (["a", 1.0, None],))
    assert not same([1.0], [1.1])
    assert not same(["a"], ["a", "b"])
