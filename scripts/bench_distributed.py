#!/usr/bin/env python3
"""Measures one model over two processes beside one, divided in both ways: tokens a second.

    scripts/bench_distributed.py                                # the bundled model
    scripts/bench_distributed.py --model-path FOLDER --rows 1 8 32 --added-us 0 300
    scripts/bench_distributed.py --model-path FOLDER --core-each --prompts 1 4 --added-us 0

For each link: how long a sum over both ranks takes, of 4 KB and of 4 MB, and tokens a second
with so many rows, where heads are divided (--tensor-parallel) and where layers are
(--pipeline-parallel). `--added-us` lets every byte between the ranks arrive later by that; what a
sum then takes is measured, not assumed. Both ranks run on this machine and share its cores: the
table shows what the link costs, not what a second machine brings. For that, `--core-each` gives
every process one core of its own, the one process too (Linux only).
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchlib.slow_link import SlowLink
from benchlib.table import format_table

# Opens a fast BLAS (on Linux CPUs), which must come before the first import of mlx.
from mlx_parallm.cpu import blas  # isort: skip

blas.preload()

import mlx.core as mx  # noqa: E402

from mlx_parallm.engine.engine import Engine  # noqa: E402
from mlx_parallm.engine.ranks import meet  # noqa: E402
from mlx_parallm.engine.ranks.launch import free_ports  # noqa: E402
from mlx_parallm.engine.ranks.links import Door  # noqa: E402
from mlx_parallm.engine.sequence import Output, SamplingParams, Sequence  # noqa: E402
from mlx_parallm.server.main import build_engine  # noqa: E402
from mlx_parallm.settings import Settings  # noqa: E402

_SMALL, _LARGE = 1 << 10, 1 << 20  # floats
_REPEATS = 50
_WAYS = {"tensor_parallel": "heads divided", "pipeline_parallel": "layers divided"}


def main() -> None:
    """Print a row for each link."""
    args = _arguments()
    if args.part is not None:
        _compute(args)
        return
    rows = [{"ranks": "one process", **_row(_run(args, None))}]
    for added in args.added_us:
        link = f"two, {added} us later" if added else "two, loopback"
        rows += [{"ranks": f"{link}, {_WAYS[w]}", **_row(_run(args, added, w))} for w in args.ways]
    sys.stdout.write(format_table(rows) + "\n")


def _row(found: dict[str, str]) -> dict[str, str | None]:
    return {
        "sum of 4 KB, us": found.get("small_us"),
        "sums of 4 MB, GB/s": found.get("large_gb_s"),
        **{f"{name}, tokens/s": value for name, value in found.items() if " " in name},
    }


def _run(args: argparse.Namespace, added_us: int | None, way: str = "") -> dict[str, str]:
    """What one setting's first process has measured."""
    command = [sys.executable, __file__, "--model-path", args.model_path]
    command += ["--tokens", str(args.tokens), "--rows", *map(str, args.rows)]
    command += ["--prompts", *map(str, args.prompts), "--prompt-tokens", str(args.prompt_tokens)]
    if added_us is None:
        with _core(0, args):
            alone = subprocess.Popen([*command, "--part", "1"], stdout=subprocess.PIPE)
        return _first([alone])
    with _hosts(added_us) as files:
        command += ["--part", "2", "--way", way, "--slower-us", str(added_us)]
        ranks = []
        for rank, file in enumerate(files):
            environment = {**os.environ, "MLX_HOSTFILE": str(file), "MLX_RANK": str(rank)}
            with _core(rank, args):
                ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
        return _first(ranks)


@contextlib.contextmanager
def _core(number: int, args: argparse.Namespace) -> Iterator[None]:
    """What is started inside has one core, where that was asked for."""
    if not args.core_each:
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _first(processes: list[subprocess.Popen[bytes]]) -> dict[str, str]:
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a process has failed; it has said why")
    found: dict[str, str] = json.loads(outputs[0])
    return found


@contextlib.contextmanager
def _hosts(added_us: int) -> Iterator[list[Path]]:
    """A file of addresses for each rank; they lead through slow links."""
    ports = free_ports(2)
    reached = [SlowLink(port, added_us / 1e6).port for port in ports] if added_us else ports
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for rank in range(2):
            addresses = [ports[one] if one == rank else reached[one] for one in range(2)]
            files.append(Path(folder) / f"{rank}.json")
            files[-1].write_text(json.dumps([[f"127.0.0.1:{port}"] for port in addresses]))
        yield files


def _compute(args: argparse.Namespace) -> None:
    """One process: load, measure, and print where it is the first."""
    settings = Settings(
        model_path=args.model_path,
        **({args.way: args.part} if args.part > 1 else {}),
        max_batch_size=max(args.rows),
        prefix_cache_memory=0,
    )
    if args.slower_us:
        vars(meet)["Door"] = _slow_door(args.slower_us / 1e6)
    engine = build_engine(settings)
    engine.start()
    engine.wait_ready()
    if not engine.ranks.leads:
        engine.thread.join()
        return
    found = engine.enter(MeasureLink()).result() if args.part > 1 else {}
    _seconds(engine, _prompts(2, 8), 4)  # what is compiled, is now
    for rows in args.rows:
        seconds = _seconds(engine, _prompts(rows, 8), args.tokens)
        found[f"rows {rows}"] = f"{rows * args.tokens / seconds:.0f}"
    for count in args.prompts:
        seconds = _seconds(engine, _prompts(count, args.prompt_tokens), 1)
        found[f"prompts {count}"] = f"{count * args.prompt_tokens / seconds:.0f}"
    engine.stop()
    sys.stdout.write(json.dumps(found) + "\n")


def _slow_door(added_s: float) -> type[Door]:
    """Where the other rank finds rank 0, through a slow link: what they tell each other is later
    too."""

    class SlowDoor(Door):
        @property
        def address(self) -> bytes:
            host, port, key = super().address.decode().split()
            return f"{host} {SlowLink(int(port), added_s).port} {key}".encode()

    return SlowDoor


class MeasureLink:
    """Every rank adds up the same arrays at the same place."""

    at_rest = True

    def apply(self, engine: Engine) -> dict[str, str]:
        """What a small and a large sum take."""
        small, large = _seconds_of_sum(_SMALL), _seconds_of_sum(_LARGE)
        return {"small_us": f"{small * 1e6:.0f}", "large_gb_s": f"{4 * _LARGE / large / 1e9:.2f}"}


def _seconds_of_sum(size: int) -> float:
    array, times = mx.ones(size), []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        mx.eval(mx.distributed.all_sum(array))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _prompts(count: int, length: int) -> list[list[int]]:
    """Of which none begins as another."""
    return [[5 + place] * length for place in range(count)]


def _seconds(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    """Until each of these prompts, which come at once, has so many tokens."""
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    sequences = [Sequence(prompt, params) for prompt in prompts]
    left, began = {one.id for one in sequences}, time.perf_counter()
    done = threading.Event()

    def take(outputs: list[Output]) -> None:
        left.difference_update(o.sequence_id for o in outputs if o.finish_reason is not None)
        if not left:
            done.set()

    engine.submit(sequences, take)
    done.wait()
    return time.perf_counter() - began


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default="bundled", metavar="PATH")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="of each row")
    parser.add_argument("--prompts", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="of each")
    parser.add_argument("--core-each", action="store_true", help="one core for each process")
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=[*_WAYS])
    parser.add_argument("--added-us", type=int, nargs="+", default=[0, 100, 300], metavar="US")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--slower-us", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
