#!/usr/bin/env python3
"""What grammars cost, and what guessing brings with them: ratios within one run.

    scripts/bench_structured.py --model 27m --rows 32
    scripts/bench_structured.py --model SOME/FOLDER --only masks

masks: tokens a second of rows that all have a JSON schema, over the same rows without one.
none: rows without a grammar on an engine that has served grammars, over one that has not.
guesses: rows whose schema has long keys, with n-gram speculation over without.
compile: milliseconds for a schema that was seen before.
hostile: gaps of eight streams of a server, without and with schemas beside them that are too
    expensive, and how soon these are refused.
Sides alternate; the figures are geometric means of the rounds' ratios, with standard errors, by
the clock and by CPU time. The second hardly depends on what else runs on the machine.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import math
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchlib import hostile_schemas
from benchlib.servers import our_command, spawn

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.grammar import Compiler, Grammar
from mlx_parallm.engine.sequence import Output, SamplingParams, Sequence
from mlx_parallm.models.loader import load_model

_WORDS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_ENDLESS: dict[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
}
_LONG_KEYS: dict[str, Any] = {
    "type": "object",
    "properties": {
        f"the_{word}_measurement_of_the_temperature_in_degrees": {"enum": [1, 2, 3]}
        for word in _WORDS
    },
    "required": [f"the_{word}_measurement_of_the_temperature_in_degrees" for word in _WORDS],
    "additionalProperties": False,
}
_PROMPT = "The measurements of today, as JSON with one key for each of them: "


@dataclass(frozen=True)
class Speed:
    """Tokens a second, and a second of CPU time, which does not count what else runs."""

    seconds: float
    cpu: float


@dataclass
class Side:
    """One engine, and the rows that it is given."""

    engine: Engine
    compiler: Compiler
    schema: dict[str, Any] | None
    tokens: int

    def round(self, rows: int, seed: int) -> Speed:
        """One round."""
        sequences = [self._sequence(seed + row) for row in range(rows)]
        left, done = {s.id for s in sequences}, threading.Event()
        said = 0

        def sink(outputs: list[Output]) -> None:
            nonlocal said
            for output in outputs:
                if output.error is not None:
                    raise output.error
                said += len(output.token_ids)
                if output.finish_reason is not None:
                    left.discard(output.sequence_id)
            if not left:
                done.set()

        began, cpu = time.perf_counter(), time.process_time()
        self.engine.submit(sequences, sink)
        if not done.wait(600):
            raise TimeoutError("a round did not end")
        return Speed(
            said / (time.perf_counter() - began),
            said / (time.process_time() - cpu),
        )

    def _sequence(self, seed: int) -> Sequence:
        loaded = self.engine.loaded
        assert loaded is not None
        ids = [int(token) for token in loaded.tokenizer.encode(_PROMPT)]
        params = SamplingParams(
            max_tokens=self.tokens,
            temperature=1.0,
            seed=seed,
            eos_token_ids=loaded.eos_token_ids,
            ignore_eos=self.schema is None,
        )
        sequence = Sequence(ids, params)
        if self.schema is not None:
            grammar = Grammar.json_schema(self.schema)
            sequence.constraint = self.compiler.constraint(grammar, param="schema").result()
        return sequence


def compare(ours: Side, theirs: Side, rows: int, rounds: int, warm: int) -> str:
    """The ratios of two sides' speeds."""
    pairs = []
    for place in range(-warm, rounds):
        order = (ours, theirs) if place % 2 else (theirs, ours)
        speeds = {id(side): side.round(rows, 1000 * (place + warm)) for side in order}
        if place >= 0:
            pairs.append((speeds[id(ours)], speeds[id(theirs)]))
    seconds = _ratio([one.seconds / other.seconds for one, other in pairs])
    return f"{seconds}; by CPU time {_ratio([one.cpu / other.cpu for one, other in pairs])}"


def _ratio(ratios: list[float]) -> str:
    """The geometric mean and its standard error."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = math.exp(statistics.fmean(logs))
    error = mean * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return f"{mean:.3f} ± {error:.3f}"


def compile_ms(compiler: Compiler) -> float:
    """Milliseconds for a schema that was seen before, the median."""
    times = []
    for _ in range(50):
        began = time.perf_counter()
        compiler.constraint(Grammar.json_schema(_LONG_KEYS), param="schema").result()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def _engine(path: str, **config: Any) -> Engine:
    engine = Engine(lambda: load_model(path), EngineConfig(max_batch_size=32, **config))
    engine.start()
    engine.wait_ready()
    return engine


def _folder(model: str) -> str:
    if Path(model).exists() or model == "bundled" or "/" in model:
        return model
    script = str(Path(__file__).with_name("bench_models.py"))
    made = subprocess.run([sys.executable, script, model], check=True, capture_output=True)
    return made.stdout.decode().split()[-1]


def main() -> None:
    """Run what was asked for and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="27m", help="a name of bench_models.py, or a folder")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48, help="of a row in a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", choices=["masks", "none", "guesses", "compile", "hostile"])
    asked = parser.parse_args()
    path = _folder(asked.model)
    plain = _engine(path)
    assert plain.loaded is not None
    loaded = plain.loaded
    compiler = Compiler(loaded.tokenizer, loaded.vocab_size, loaded.eos_token_ids)
    free = Side(plain, compiler, None, asked.tokens)
    engines = [plain]

    def say(name: str, value: str) -> None:
        if asked.only in (None, name):
            print(f"{asked.model}, {asked.rows} rows, {name}: {value}", flush=True)

    if asked.only in (None, "masks"):
        held = Side(plain, compiler, _ENDLESS, asked.tokens)
        say("masks", compare(held, free, asked.rows, asked.rounds, 1))
    if asked.only in (None, "none"):
        engines.append(_engine(path))
        say(
            "none",
            compare(
                free, Side(engines[-1], compiler, None, asked.tokens), asked.rows, asked.rounds, 1
            ),
        )
    if asked.only in (None, "guesses"):
        engines.append(_engine(path, speculative="ngram", num_draft_tokens=12))
        sides = [Side(engine, compiler, _LONG_KEYS, 400) for engine in (engines[-1], plain)]
        say("guesses", compare(sides[0], sides[1], asked.rows, asked.rounds, 2))
    if asked.only in (None, "compile"):
        say("compile", f"{compile_ms(compiler):.3f} ms")
    for engine in engines:
        engine.stop()
    compiler.close()
    if asked.only in (None, "hostile"):
        with spawn("ours", our_command(path)) as server:
            say("hostile", hostile_schemas.report(server.url, max(2, asked.rounds)))


if __name__ == "__main__":
    main()
