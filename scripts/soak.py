#!/usr/bin/env python3
"""Random clients on a server for a long time, and what must hold meanwhile and afterwards.

    scripts/soak.py --model-path bundled --seconds 3600
    scripts/soak.py --url http://127.0.0.1:8000 --clients 16

Clients ask for whole answers and streams with random settings, on every API, with schemas,
grammars, tools, an adapter and memories; they add and remove memories and responses, cancel
each other's requests, hang up in mid-stream, and send nonsense. Checked: every request is
answered once and completely, nonsense with a 4xx in OpenAI's envelope; answers, 2% of them by
default, are what the same request is answered alone, at the next rest; at rest no row is held,
every accepted sequence is accounted for, and memory, threads and open files stay level.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench_models
from benchlib.http import Answer, Connection
from benchlib.servers import SpawnedServer, SpawnError, our_command, spawn
from soaking.adapter import make_adapter
from soaking.asked import (
    ADAPTER,
    COLLECTION,
    WORDS,
    Asked,
    any_request,
    same,
    text,
    with_tools,
)
from soaking.levels import Level, growth

_HELD = ("running", "waiting", "rows", "kv_bytes", "prefix_pages_held")  # 0 at rest
_PREFIX_BYTES = 24_000_000
_LEADING = 4  # answers of each round that are checked in any case
_NONSENSE: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"prompt": 5}',
    b'{"prompt": []}',
    b'{"prompt": [999999999]}',
    b'{"prompt": "a", "temperature": "hot"}',
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "max_tokens": -1}',
    b'{"prompt": "a", "max_tokens": 1e400}',
    b'{"prompt": "a", "n": 100000}',
    b'{"prompt": "a", "logprobs": 1000}',
    b'{"prompt": "a", "stop": [1]}',
    b'{"prompt": "a", "model": "no such model"}',
    b'{"prompt": "a", "logit_bias": {"x": 1}}',
]


class Broken(AssertionError):
    """Something that must hold did not."""


@dataclass
class Soak:
    """A soak of one server.

    Attributes:
        rest_s: seconds that the server may take to come to rest.
        checked: the share of answers that is compared with the run alone.
        has_adapter: whether ADAPTER is served.
        counts: requests by kind, and what came of them.
        levels: what the process held at each rest.
    """

    connection: Connection
    model: str
    seed: int
    clients: int
    spawned: SpawnedServer | None = None
    rest_s: float = 120
    checked: float = 0.02
    has_adapter: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    levels: list[Level] = field(default_factory=list)
    probes: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    _kept: list[tuple[Asked, Any]] = field(default_factory=list)
    _has_memories: bool = False
    _has_tools: bool = False
    _names: itertools.count[int] = field(default_factory=itertools.count)

    async def run(self, seconds: float, rounds: int) -> None:
        """Rounds of load, each followed by a rest at which the server is looked at.

        Raises:
            Broken: with what did not hold.
        """
        await self._record_probes()
        await self._fill_collection()
        await self._try_tools()
        for number in range(rounds):
            end = time.monotonic() + seconds / rounds
            clients = [
                self._client(self.seed + 1000 * number + i, end) for i in range(self.clients)
            ]
            await asyncio.gather(*clients)
            await self._rest()
            await self._check_kept()
        if (grown := growth(self.levels)) is not None:
            raise Broken(grown)

    async def _client(self, seed: int, end: float) -> None:
        rng = random.Random(seed)
        kinds: list[Callable[[random.Random], Awaitable[None]]] = [
            self._whole,
            self._stream,
            self._hang_up,
            self._nonsense,
            self._probe,
            self._any,
            self._cancelled,
            self._memories,
            self._responses,
        ]
        while time.monotonic() < end:
            await rng.choices(kinds, weights=[3, 4, 2, 1, 1, 8, 1, 1, 1])[0](rng)

    # Kinds of requests

    async def _whole(self, rng: random.Random) -> None:
        body = self._body(rng)
        self._check_answer(body, await self._ask("whole", body))

    async def _stream(self, rng: random.Random) -> None:
        body = self._body(rng) | {"stream": True, "stream_options": {"include_usage": True}}
        self._check_stream(body, await self._ask("stream", body))

    async def _hang_up(self, rng: random.Random) -> None:
        body = self._body(rng) | {"max_tokens": 200, "stream": rng.random() < 0.7}
        self.counts["hang up"] += 1
        if body["stream"]:
            body.pop("logprobs", None)
        await self.connection.hang_up(
            "/v1/completions", json.dumps(body).encode(), rng.randrange(4), rng.random() * 0.3
        )

    async def _nonsense(self, rng: random.Random) -> None:
        body = rng.choice(_NONSENSE)
        self.counts["nonsense"] += 1
        answer = await self.connection.post("/v1/completions", body)
        error = answer.json().get("error", {})
        complete = {"message", "type", "param", "code"} <= set(error)
        if not (400 <= answer.status < 500 and answer.status != 422 and complete):
            raise Broken(f"{body[:80]!r} was answered with {answer.status}: {answer.body[:300]!r}")

    async def _probe(self, rng: random.Random) -> None:
        body, expected = rng.choice(self.probes)
        answer = await self._ask("probe", body)
        if answer is not None and _text(answer) != expected:
            raise Broken(f"{body} gave {_text(answer)!r}, alone it was {expected!r}")

    async def _any(self, rng: random.Random) -> None:
        """A request of some kind; some of them are asked again when nothing else runs."""
        asked = any_request(
            rng,
            self.model,
            memories=self._has_memories,
            adapter=self.has_adapter,
            tools=self._has_tools,
        )
        answer = await self._ask(asked.path.rpartition("/")[2], asked.body, asked.path)
        if answer is not None and (len(self._kept) < _LEADING or rng.random() < self.checked):
            self._kept.append((asked, asked.said(answer.json())))

    async def _cancelled(self, rng: random.Random) -> None:
        """A generation that another connection ends, or that ended before."""
        id_ = f"soak-{next(self._names)}"
        body = {"prompt": text(rng), "max_tokens": rng.randint(1, 300), "ignore_eos": True}
        self.counts["cancelled"] += 1
        asked = asyncio.create_task(
            self.connection.post("/generate", json.dumps(body).encode(), {"x-request-id": id_})
        )
        await asyncio.sleep(rng.random() * 0.2)
        ended = await self.connection.delete(f"/status/{id_}")
        answer = await asked
        told = (answer.status, ended.status)
        if told not in {(200, 200), (409, 200), (200, 404), (429, 404), (503, 404)}:
            raise Broken(f"a cancelled request and its DELETE were answered with {told}")

    async def _memories(self, rng: random.Random) -> None:
        """Add a text to a collection, or remove one."""
        name, path = f"soak-{rng.randrange(4)}", f"/v1/models/{self.model}/memories"
        self.counts["memories"] += 1
        if rng.random() < 0.3:
            answer = await self.connection.delete(f"{path}?collection={name}")
            expected = {200, 404, 409}
        else:
            body = {"collection": name, "text": text(rng), "id": f"d{rng.randrange(6)}"}
            answer = await self.connection.post(path, json.dumps(body).encode())
            expected = {202, 409, 429, 503}
        if answer.status not in expected:
            raise Broken(f"memories were answered with {answer.status}: {answer.body[:300]!r}")

    async def _responses(self, rng: random.Random) -> None:
        """Store a response, go on from it, and delete it."""
        path, body = "/v1/responses", {"input": text(rng), "max_output_tokens": 8}
        first = await self._ask("responses", body, path)
        if first is None:
            return
        id_ = first.json()["id"]
        second = {**body, "previous_response_id": id_, "store": False}
        await self._ask("responses", second, path)
        for answer, status in (
            (await self.connection.get(f"{path}/{id_}"), 200),
            (await self.connection.delete(f"{path}/{id_}"), 200),
            (await self.connection.get(f"{path}/{id_}"), 404),
        ):
            if answer.status != status:
                raise Broken(f"a stored response was answered with {answer.status}, not {status}")

    async def _fill_collection(self) -> None:
        """Make the memories that answers are checked with, where the model takes any."""
        path = f"/v1/models/{self.model}/memories"
        body = {"collection": COLLECTION, "text": "The code of Mira is 57. The code of Tom is 23."}
        answer, end = await self.connection.post(path, json.dumps(body).encode()), self._rest_end()
        while answer.status in (200, 202) and answer.json()["status"] in ("queued", "running"):
            if time.monotonic() > end:
                raise Broken(f"a job of memories does not end: {answer.json()}")
            await asyncio.sleep(0.1)
            answer = await self.connection.get(f"/v1/memories/jobs/{answer.json()['id']}")
        self._has_memories = answer.status == 200 and answer.json()["status"] == "done"

    async def _try_tools(self) -> None:
        """Whether the model calls tools."""
        asked = with_tools(random.Random(0), self.model)
        answer = await self.connection.post(asked.path, json.dumps(asked.body).encode())
        self._has_tools = answer.status == 200

    async def _check_kept(self) -> None:
        """Ask again, alone, what was asked among others."""
        kept, self._kept = self._kept, []
        for asked, said in kept:
            answer = await self._ask("alone", asked.body, asked.path)
            alone = None if answer is None else asked.said(answer.json())
            if not same(said, alone):
                raise Broken(f"{asked} said {said!r}, and alone {alone!r}")
        self.counts["compared"] += len(kept)

    async def _record_probes(self) -> None:
        common = {"model": self.model, "max_tokens": 24, "ignore_eos": True}
        for extra in ({"temperature": 0}, {"temperature": 1, "seed": 7}, {"top_p": 0.9, "seed": 8}):
            body = {**common, "prompt": "two plus three is", **extra}
            answer = await self._ask("probe", body)
            if answer is None:
                raise Broken("the server was full before there was any load")
            self.probes.append((body, _text(answer)))

    def _body(self, rng: random.Random) -> dict[str, Any]:
        prompts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(3)]
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompts if rng.random() < 0.2 else prompts[0],
            "max_tokens": rng.randint(1, 40),
            "temperature": rng.choice([0, 0.7, 1.0]),
        }
        options: list[dict[str, Any]] = [
            {"n": rng.randint(2, 4)},
            {"logprobs": rng.randint(0, 5)},
            {"top_p": 0.9},
            {"top_k": 20},
            {"min_p": 0.1},
            {"stop": ["a", "is"]},
            {"seed": rng.randrange(1000)},
            {"repetition_penalty": 1.2},
            {"frequency_penalty": 0.5, "presence_penalty": 0.5},
            {"ignore_eos": True},
            {"echo": True},
            {"logit_bias": {"5": 10}},
        ]
        for option in rng.sample(options, rng.randint(0, 4)):
            body |= option
        return body

    # Checks

    async def _ask(
        self, kind: str, body: dict[str, Any], path: str = "/v1/completions"
    ) -> Answer | None:
        """A complete answer, or None where the server said that it is full."""
        self.counts[kind] += 1
        answer = await self.connection.post(path, json.dumps(body).encode())
        if answer.status in (429, 503) and "retry-after" in answer.headers:
            self.counts["told to come later"] += 1
            return None
        if answer.status != 200:
            raise Broken(f"{body} was answered with {answer.status}: {answer.body[:300]!r}")
        return answer

    def _check_answer(self, body: dict[str, Any], answer: Answer | None) -> None:
        if answer is None:
            return
        found = answer.json()
        wanted = _choices(body)
        if sorted(choice["index"] for choice in found["choices"]) != list(range(wanted)):
            raise Broken(f"{body} has the choices {[c['index'] for c in found['choices']]}")
        if not all(choice["finish_reason"] in ("stop", "length") for choice in found["choices"]):
            raise Broken(f"{body} has a choice that did not finish")
        self._check_usage(body, found["usage"])

    def _check_stream(self, body: dict[str, Any], answer: Answer | None) -> None:
        if answer is None:
            return
        events, done = answer.events()
        if not done:
            raise Broken(f"the stream of {body} was cut off: {answer.body[-300:]!r}")
        ends = [c["index"] for e in events for c in e.get("choices", []) if c.get("finish_reason")]
        if sorted(ends) != list(range(_choices(body))):
            raise Broken(f"the stream of {body} ended the choices {ends}")
        usages = [event["usage"] for event in events if event.get("usage")]
        if len(usages) != 1:
            raise Broken(f"the stream of {body} has {len(usages)} usages")
        self._check_usage(body, usages[0])

    def _check_usage(self, body: dict[str, Any], usage: dict[str, Any]) -> None:
        made = usage["completion_tokens"]
        if not 0 < made <= _choices(body) * body["max_tokens"]:
            raise Broken(f"{body} says that it took {made} tokens")
        self.counts["tokens"] += made

    # At rest

    async def _rest(self) -> None:
        engine = await self._idle_engine()
        ends = engine["finished"] + engine["aborted"] + engine["failed"]
        if engine["accepted"] != ends:
            raise Broken(f"{engine['accepted']} sequences were accepted and {ends} ended")
        if engine["failed"]:
            raise Broken(f"{engine['failed']} sequences failed")
        if self.spawned is not None:
            if "Traceback" in self.spawned.log.read_text(errors="replace"):
                raise Broken(f"the log has a traceback:\n{self.spawned.log.read_text()[-3000:]}")
            if engine["prefix_bytes"] > _PREFIX_BYTES:
                raise Broken(f"prefixes take {engine['prefix_bytes']} bytes")
            level = Level.of(self.spawned.process.pid)
            self.levels += [] if level is None else [level]
            print(f"at rest {len(self.levels)}: {level}; {dict(self.counts)}", flush=True)

    async def _idle_engine(self) -> dict[str, Any]:
        """The engine's counters once it has come to rest.

        Raises:
            Broken: something is still held after `rest_s` without a client.
        """
        engine: dict[str, Any] = {}
        end = self._rest_end()
        while time.monotonic() < end:
            await asyncio.sleep(0.1)
            answer = await self.connection.get("/debug/metrics")
            engine = answer.json()["engine"]
            if not any(engine.get(name) for name in _HELD):
                return engine
        raise Broken(f"the server does not come to rest: {engine}")

    def _rest_end(self) -> float:
        return time.monotonic() + self.rest_s


def _choices(body: dict[str, Any]) -> int:
    prompts = len(body["prompt"]) if isinstance(body["prompt"], list) else 1
    return prompts * int(body.get("n", 1))


def _text(answer: Answer) -> str:
    return str(answer.json()["choices"][0]["text"])


def main() -> None:
    """Soak the server of the command line; exit with 1 when something did not hold."""
    args = _arguments()
    with contextlib.ExitStack() as stack:
        spawned, url, flags = None, args.url, []
        if url is None:
            path = args.model_path
            model = bench_models.ensure(path) if path in bench_models.SHAPES else path
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
            flags = _adapter_flags(Path(model), folder / "adapter")
            try:
                spawned = stack.enter_context(
                    spawn("mlx_parallm", our_command(model, *flags, *_kept_flags(folder)))
                )
            except SpawnError as error:
                sys.exit(f"soak: {error}")
            url = spawned.url
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
            name = json.load(response)["data"][0]["id"]
        soak = Soak(Connection(url), name, args.seed, args.clients, spawned)
        soak.checked, soak.has_adapter = args.checked, bool(flags)
        try:
            asyncio.run(soak.run(args.seconds, args.rounds))
        except (Broken, OSError, ValueError, KeyError) as error:
            log = "" if spawned is None else f"\nthe server's log ends with:\n{spawned.tail()}"
            sys.exit(f"soak: {type(error).__name__}: {error}\nso far: {dict(soak.counts)}{log}")
    levels = "; ".join(map(str, soak.levels)) or "not known"
    print(f"all held: {dict(soak.counts)}; at the rests: {levels}")


def _adapter_flags(model: Path, folder: Path) -> list[str]:
    """Flags that serve an adapter beside the model, where one can be made for it."""
    bundled = Path(__file__).resolve().parents[1] / "mlx_parallm/models/bundled"
    place = bundled if str(model) == "bundled" else model
    return ["--lora-modules", f"{ADAPTER}={folder}"] if make_adapter(place, folder) else []


def _kept_flags(folder: Path) -> list[str]:
    """Flags of everything that is kept on disk, and of caches that are full within a minute: a
    cache that still fills would look like a leak."""
    return [
        *("--prefix-cache-memory", str(_PREFIX_BYTES), "--prefix-cache-disk", "48MB"),
        *("--prefix-cache-dir", str(folder / "prefixes"), "--memory-dir", str(folder / "memories")),
        *("--response-store", str(folder / "responses.db")),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a running server; default: one is started")
    where.add_argument("--model-path", default="bundled", help="bundled, tiny, 27m, folder, hub id")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=4, help="rests to look at the server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checked", type=float, default=0.02, help="share of answers asked again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
