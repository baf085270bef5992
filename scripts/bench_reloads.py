#!/usr/bin/env python3
"""What new versions cost the rows that run: how long they stall, and whether memory stays level.

    scripts/bench_reloads.py --model-path 27m
    scripts/bench_reloads.py --model-path FOLDER --reloads 500 --weight-reloads 50 --json FILE

Eight rows decode all the time. An adapter of rank 16 for every linear layer, and then the whole
model's weights, are replaced again and again; a probe after each change must be of the new
version, to the last token. A stall is what the longest pause between two steps during a change
is longer than a step without one.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)
import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bench_models
import mlx.core as mx
import numpy as np
from benchlib.table import format_table, percentile

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import Output, SamplingParams, Sequence
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.lora.modules import Modules, width_of
from mlx_parallm.models.system_memory import resident_bytes
from mlx_parallm.server.adapters import Adapters
from mlx_parallm.server.weights import ModelVersions

ROWS, RANK, PROBE = 8, 16, 4
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAME = "policy"
_PREFIXES = 4 << 20  # bytes: soon full of prefixes of earlier versions, so that memory is level
_AFTER_S = 0.1  # a change may end in the middle of a step
Change = Callable[[int], Awaitable[Any]]


def write_adapter(folder: Path, modules: Modules, seed: int) -> Path:
    """A random adapter for all linear layers, in mlx-lm's format."""
    rng, arrays = np.random.default_rng(seed), {}
    for path in modules.paths:
        if path.rpartition(".")[2] in LINEARS:
            out, width = width_of(modules[path])
            for name, shape in (("lora_a", (width, RANK)), ("lora_b", (RANK, out))):
                arrays[f"{path}.{name}"] = mx.array(rng.normal(size=shape).astype("f4") * 0.1)
    folder.mkdir()
    parameters = {"rank": RANK, "scale": 1.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "adapters.safetensors"), arrays)
    return folder


class Load:
    """Rows that decode until they are stopped, and the moments of their steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopped = False
        self.moments: list[float] = []
        self.adapter: Adapter | None = None

    def start(self) -> None:
        """Keep ROWS rows busy."""
        self._engine.submit([self._row(place) for place in range(ROWS)], self._sink)

    def stop(self) -> None:
        """Begin no more rows."""
        self._stopped = True

    def pauses(self, since: float, until: float) -> list[float]:
        """Seconds between any two steps in this time, and the one it ends in."""
        inside = [m for m in self.moments if since <= m <= until]
        return [b - a for a, b in itertools.pairwise(inside)]

    def _row(self, place: int) -> Sequence:
        params = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
        return Sequence([5 + place] * 8, params, adapter=self.adapter)

    def _sink(self, outputs: list[Output]) -> None:
        self.moments.append(time.perf_counter())
        ended = sum(output.finish_reason is not None for output in outputs)
        if ended and not self._stopped:
            self._engine.submit([self._row(place) for place in range(ended)], self._sink)


async def probe(engine: Engine, adapter: Adapter | None) -> tuple[list[int], set[int]]:
    """A few greedy tokens, and the versions that gave them."""
    params = SamplingParams(max_tokens=PROBE, temperature=0, ignore_eos=True)
    sequence, loop = Sequence([7] * 40, params, adapter=adapter), asyncio.get_running_loop()
    done = loop.create_future()

    def sink(outputs: list[Output]) -> None:
        if outputs[-1].finish_reason is not None:
            loop.call_soon_threadsafe(done.set_result, None)

    engine.submit([sequence], sink)
    await done
    return sequence.output, set(sequence.versions)


async def measure(folder: Path, reloads: int, whole_reloads: int) -> list[dict[str, Any]]:
    """A row for adapters and one for whole weights."""
    config = EngineConfig(prefix_cache_memory=_PREFIXES)
    engine = Engine(lambda: load_model(str(folder)), config)
    engine.start()
    engine.wait_ready()
    with tempfile.TemporaryDirectory() as place:
        files = Path(place)
        adapters, versions = Adapters(engine, {}, None, ()), ModelVersions(engine, 2)
        paths = [write_adapter(files / str(n), engine.adapter_modules(), n) for n in range(2)]
        whole = await asyncio.to_thread(_write_weights, engine, files)
        load = Load(engine)
        await adapters.add(NAME, str(paths[1]))
        load.adapter = await adapters.get(NAME)
        load.start()

        async def change_adapter(n: int) -> Adapter:
            await adapters.add(NAME, str(paths[n % 2]), replace=True, running="keep")
            load.adapter = await adapters.get(NAME)
            return load.adapter

        async def change_weights(n: int) -> None:
            await versions.put_path(str(whole[n % 2]), "keep")

        rows = [await _changes("adapter, rank 16", engine, load, change_adapter, reloads)]
        load.adapter = None
        rows.append(await _changes("whole weights", engine, load, change_weights, whole_reloads))
        load.stop()
        adapters.close()
        versions.close()
        await asyncio.to_thread(engine.stop)
    return rows


def _write_weights(engine: Engine, folder: Path) -> list[Path]:
    """The model's weights, and others."""
    files = [folder / f"weights-{n}.safetensors" for n in range(2)]

    def write() -> None:
        for n, path in enumerate(files):
            arrays = {k: v * (1 + 0.1 * n) for k, v in engine.weights.parameters.items()}
            mx.save_safetensors(str(path), arrays)

    engine.call(write).result()
    return files


async def _changes(
    name: str, engine: Engine, load: Load, change: Change, reloads: int
) -> dict[str, Any]:
    stalls, seconds, memory, resident, stale = [], [], [], [], 0
    texts: dict[int, list[int]] = {}
    await asyncio.sleep(0.5)
    for n in range(reloads):
        began = time.perf_counter()
        plain = statistics.median(load.pauses(began - 0.5, began) or [0.0])
        adapter = await change(n)
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(_AFTER_S)
        stalls.append(max(load.pauses(began, time.perf_counter()), default=0.0) - plain)
        tokens, seen = await probe(engine, adapter)
        stale += texts.setdefault(n % 2, tokens) != tokens or len(seen) != 1
        memory.append(await asyncio.wrap_future(engine.call(mx.get_active_memory)))
        resident.append(resident_bytes() or 0)
    return {
        "change": name,
        "reloads": reloads,
        "ms each": round(statistics.median(seconds) * 1e3, 1),
        "stall ms, median": round(statistics.median(stalls) * 1e3, 1),
        "stall ms, 95%": round((percentile(stalls, 0.95) or 0) * 1e3, 1),
        "stall ms, longest": round(max(stalls) * 1e3, 1),
        "stale answers": stale,
        "MLX MB at first": _most(memory, first=True),
        "MLX MB at last": _most(memory, first=False),
        "resident MB at first": _most(resident, first=True),
        "resident MB at last": _most(resident, first=False),
    }


def _most(sizes: list[int], *, first: bool) -> int:
    """MB at most in the first or in the last quarter."""
    quarter = max(2, len(sizes) // 4)
    return round(max(sizes[:quarter] if first else sizes[-quarter:]) / 1e6)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", default="27m", help="folder, or a name of bench_models.py")
    parser.add_argument("--reloads", type=int, default=100, help="changes of the adapter")
    parser.add_argument("--weight-reloads", type=int, help="of the whole weights; default: as many")
    parser.add_argument("--json", type=Path, help="file for all rows")
    args = parser.parse_args()
    whole = args.reloads if args.weight_reloads is None else args.weight_reloads
    rows = asyncio.run(measure(bench_models.folder_of(args.model_path), args.reloads, whole))
    print(format_table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
