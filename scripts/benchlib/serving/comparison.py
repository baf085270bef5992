"""Servers that take turns under the same load."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import bench_models

from benchlib.load_client import Target, closed_loop, open_loop
from benchlib.servers import SpawnedServer, mlx_lm_command, our_command, spawn
from benchlib.serving.figures import Figures, Result, figures
from benchlib.serving.load import Load, MakePrompt, prompts_for
from benchlib.serving.machine import Watch
from benchlib.serving.presets import LLAMA, MLX_LM, OURS, Case, Preset

LLAMA_PROGRAM = Path(__file__).with_name("llama_server.py")
_SPARE_CONTEXT = 64  # tokens of a slot beyond prompt and answer
_BATCH = 32  # what both servers batch if nothing is said


@dataclass
class Server:
    """One side of a comparison.

    Attributes:
        model: the `model` field of its requests.
        spawned: its process, where it was started here.
    """

    name: str
    url: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    spawned: SpawnedServer | None = None

    def run(self, load: Load, make_prompt: MakePrompt, seed: str, timeout_s: float) -> Figures:
        """Put the load on the server."""
        target = Target(self.url, load.path, self.headers)
        requests = [target.request(b) for b in load.bodies(self.model, make_prompt, seed)]
        steps, cpu = self._decoding(), self._cpu_seconds()
        watch = Watch(lambda: time.process_time() + (self._cpu_seconds() or 0))
        if load.rate:
            run = asyncio.run(open_loop(target, requests, load.rate, 0, timeout_s))
        else:
            run = asyncio.run(closed_loop(target, requests, load.clients, timeout_s))
        machine, cpu_after = watch.stop(), self._cpu_seconds()
        used = cpu_after - cpu if cpu is not None and cpu_after is not None else None
        fill = _fill(steps, self._decoding(), load.clients)
        return figures(run, batch_fill=fill, server_cpu_s=used, machine=machine)

    def _cpu_seconds(self) -> float | None:
        return self.spawned.cpu_seconds() if self.spawned else None

    def _decoding(self) -> tuple[float, float] | None:
        """Steps, and decoding rows in them, since the server's start; None unless it is ours."""
        request = urllib.request.Request(f"{self.url}/metrics", headers=self.headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read().decode()
        except (OSError, http.client.HTTPException):
            return None
        pattern = r"^mlx_parallm:engine_(\w+)_total\{.*\} (\S+)$"
        found = dict(re.findall(pattern, text, re.MULTILINE))
        names = ("steps", "decode_rows")
        if not all(name in found for name in names):
            return None
        return float(found["steps"]), float(found["decode_rows"])


def _fill(
    before: tuple[float, float] | None, after: tuple[float, float] | None, clients: int
) -> float | None:
    if before is None or after is None or after[0] == before[0]:
        return None
    return round((after[1] - before[1]) / (after[0] - before[0]) / clients, 3)


def first_model(url: str, headers: dict[str, str]) -> str:
    """The first model that a server lists.

    Raises:
        ValueError: it lists none.
    """
    request = urllib.request.Request(f"{url}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            models = json.load(response)["data"]
    except (OSError, http.client.HTTPException) as error:
        # mlx_lm.server's list fails on a machine without a Hugging Face cache folder.
        raise ValueError(f"{url} lists no models ({error}); name one with --model") from error
    if not models:
        raise ValueError(f"{url} lists no model; name one with --model")
    return str(models[0]["id"])


# --- taking turns -------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Turns:
    """How servers take turns.

    Attributes:
        rounds: runs of each server under each load.
        timeout_s: for one request.
        say: tells whoever waits how far it is.
    """

    rounds: int
    timeout_s: float = 900.0
    seed: int = 0
    say: Callable[[str], None] = _say

    def alternate(
        self, name: str, load: Load, servers: Sequence[Server], make_prompt: MakePrompt
    ) -> dict[str, list[Figures]]:
        """Run a load on all servers, round after round, each time another one first.

        All get the same prompts in a round, and new ones in the next.
        """
        found: dict[str, list[Figures]] = {server.name: [] for server in servers}
        for server in servers:
            self.warm_up(name, load, server, make_prompt)
        for number in range(self.rounds):
            first = number % len(servers)
            for server in [*servers[first:], *servers[:first]]:
                found[server.name].append(self.run(name, load, server, make_prompt, number))
        return found

    def warm_up(self, name: str, load: Load, server: Server, make_prompt: MakePrompt) -> None:
        """As many requests as clients, with short answers."""
        short = replace(load, output=min(8, load.output), requests=load.clients)
        server.run(short, make_prompt, f"{self.seed} {name} warm-up", self.timeout_s)

    def run(
        self, name: str, load: Load, server: Server, make_prompt: MakePrompt, number: int
    ) -> Figures:
        """One server's run in round `number`."""
        found = server.run(load, make_prompt, f"{self.seed} {name} {number}", self.timeout_s)
        busy = "" if found.machine.idle else f", beside {found.machine}"
        self.say(f"{name}, {server.name}: {found.throughput} tokens/s{busy}")
        for error in found.errors[:3]:
            self.say(f"{server.name}: {error}")
        return found


# --- presets ------------------------------------------------------------------------------


def measure(preset: Preset, turns: Turns) -> Iterator[Result]:
    """All cases of a preset, model by model, with servers that are started for it.

    Raises:
        SpawnError: a server does not start.
        ModelError: a model cannot be had.
    """
    for model, group in groupby(preset.cases, key=lambda case: case.model):
        cases, folder = list(group), bench_models.folder_of(model)
        sides = list(_sides(folder, preset.peers, cases))
        way = _together if preset.together else _one_at_a_time
        yield from way(cases, sides, turns, prompts_for(folder))


@dataclass(frozen=True)
class _Side:
    name: str
    command: list[str]
    model: str

    @contextlib.contextmanager
    def started(self) -> Iterator[Server]:
        with spawn(self.name, self.command, ready_s=600) as spawned:
            yield Server(self.name, spawned.url, self.model, spawned=spawned)


def available(peers: Iterable[str]) -> list[str]:
    """Those of the peers that are installed."""
    has_llama = all(importlib.util.find_spec(name) for name in ("xllamacpp", "gguf"))
    return [peer for peer in peers if peer != LLAMA or has_llama]


def _sides(folder: Path, peers: Sequence[str], cases: Sequence[Case]) -> Iterator[_Side]:
    most = max([_BATCH, *(case.load.clients for case in cases)])
    yield _Side(OURS, our_command(folder, "--max-batch-size", str(most)), str(folder))
    if MLX_LM in peers:
        command = [*mlx_lm_command(folder), "--decode-concurrency", str(most)]
        # It loads a second copy under any other name than this one.
        yield _Side(MLX_LM, command, "default_model")
    if LLAMA in peers:
        from benchlib.model_files import gguf_file  # its package is optional

        slots = max(case.load.clients for case in cases)
        context = max(case.load.prompt + case.load.output for case in cases) + _SPARE_CONTEXT
        program = [sys.executable, str(LLAMA_PROGRAM), str(gguf_file.ensure(folder)), "{port}"]
        yield _Side(LLAMA, [*program, str(slots), str(context)], folder.name)


def _together(
    cases: Sequence[Case], sides: Sequence[_Side], turns: Turns, make_prompt: MakePrompt
) -> Iterator[Result]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(side.started()) for side in sides]
        for case in cases:
            runs = turns.alternate(case.name, case.load, servers, make_prompt)
            yield Result(case.name, runs, case.goals)


def _one_at_a_time(
    cases: Sequence[Case], sides: Sequence[_Side], turns: Turns, make_prompt: MakePrompt
) -> Iterator[Result]:
    runs: dict[str, dict[str, list[Figures]]] = {
        case.name: {side.name: [] for side in sides} for case in cases
    }
    for number in range(turns.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            with side.started() as server:
                for case in cases:
                    turns.warm_up(case.name, case.load, server, make_prompt)
                    found = turns.run(case.name, case.load, server, make_prompt, number)
                    runs[case.name][side.name].append(found)
    for case in cases:
        yield Result(case.name, runs[case.name], case.goals)
