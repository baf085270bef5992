#!/usr/bin/env python3
"""How far the log-probabilities that come with sampled tokens are from torch's in float32.

    scripts/logprob_mismatch.py --model-path bundled --model-path smollm2-135m

For each setting, rows are sampled together by the engine, those of all settings in one batch.
Then torch computes each sequence alone, and Transformers' own processors make of its logits
what a token is drawn from. The table has the largest differences in nats: of the processed
log-probabilities, of the raw ones, and what a trainer would get wrong that takes raw ones for
those that were drawn from. Where the last token that a cut keeps and the first that it does
not are as likely as each other to 1e-4 nats, rounding decides: such places are counted apart.
Needs the extra `rl`.
"""

from __future__ import annotations

import in_venv

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import argparse
import importlib.util
import json
import random
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_models
from benchlib.table import format_table

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import Output, SamplingParams, TokenLogprob
from mlx_parallm.engine.sequence import Sequence as Row
from mlx_parallm.models.loader import load_model

if TYPE_CHECKING:
    import torch

TIE = 1e-4  # nats
BUNDLED = in_venv.ROOT / "mlx_parallm" / "models" / "bundled"
SETTINGS: dict[str, dict[str, Any]] = {
    "T = 1": {},
    "T = 0.7": {"temperature": 0.7},
    "T = 1.5": {"temperature": 1.5},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 20": {"top_k": 20},
    "min_p 0.05": {"min_p": 0.05},
    "repetition 1.2": {"repetition_penalty": 1.2},
    "presence 0.5, frequency 0.3": {"presence_penalty": 0.5, "frequency_penalty": 0.3},
    "T = 0.7, top_k 40, top_p 0.9, min_p 0.02, repetition 1.1": {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.1,
    },
}


def sample(
    folder: Path, rows: int, tokens: int, seed: int = 1
) -> list[tuple[str, Row, list[TokenLogprob]]]:
    """Rows of every setting, sampled in one batch: (setting, its sequence, its tokens)."""
    loaded = load_model(str(folder), dtype="float32")
    rng = random.Random(seed)
    made: list[tuple[str, Row, list[TokenLogprob]]] = []
    for name, setting in SETTINGS.items():
        for _ in range(rows):
            prompt = [rng.randrange(4, loaded.vocab_size) for _ in range(rng.randrange(8, 40))]
            params = SamplingParams(
                max_tokens=tokens,
                seed=rng.getrandbits(32),
                logprobs=0,
                processed_logprobs=True,
                **setting,
            )
            made.append((name, Row(prompt, params), []))
    engine = Engine(lambda: loaded, EngineConfig(max_batch_size=len(made)))
    engine.start()
    engine.wait_ready(600)
    found = {row.id: entries for _, row, entries in made}
    left, ended = set(found), threading.Event()

    def sink(outputs: list[Output]) -> None:
        for output in outputs:
            found[output.sequence_id].extend(output.logprobs or ())
            if output.finish_reason is not None:
                left.discard(output.sequence_id)
        if not left:
            ended.set()

    try:
        engine.submit([row for _, row, _ in made], sink)
        ended.wait()
    finally:
        engine.stop()
    return made


def reference(
    model: Any, row: Row, tokens: list[int]
) -> tuple[torch.Tensor, torch.Tensor, list[bool]]:
    """Of one sequence alone, in torch.

    Returns:
        (T, V) raw and processed log-probabilities, and where a cut stands on a tie.
    """
    import torch

    first = len(row.prompt)
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt + tokens])).logits[0, first - 1 : -1].float()
    processed, ties = [], []
    for place, line in enumerate(logits):
        ids = torch.tensor([row.prompt + tokens[:place]])
        scores = line[None].clone()
        for processor in _penalties(row.params, tokens[:place]):
            scores = processor(ids, scores)
        cut = scores.clone()
        for processor in _cuts(row.params):
            cut = processor(ids, cut)
        kept = cut > -torch.inf
        ties.append(bool(scores[kept].min() - scores.masked_fill(kept, -torch.inf).max() < TIE))
        processed.append(cut[0])
    return torch.log_softmax(logits, -1), torch.log_softmax(torch.stack(processed), -1), ties


def _penalties(params: SamplingParams, output: list[int]) -> list[Any]:
    """What changes logits, in its order: penalties and temperature."""
    from transformers import generation as hf

    chain: list[Any] = []
    if params.repetition_penalty != 1:
        chain.append(hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.presence_penalty or params.frequency_penalty:
        chain.append(_OutputPenalties(params, output))
    if params.temperature != 1:
        chain.append(hf.TemperatureLogitsWarper(params.temperature))
    return chain


def _cuts(params: SamplingParams) -> list[Any]:
    """What leaves tokens out, in its order."""
    from transformers import generation as hf

    chain: list[Any] = []
    if params.top_k:
        chain.append(hf.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(hf.TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(hf.MinPLogitsWarper(params.min_p))
    return chain


class _OutputPenalties:
    """OpenAI's two penalties, which Transformers does not have."""

    def __init__(self, params: SamplingParams, output: list[int]) -> None:
        self._params = params
        self._output = output

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in set(self._output):
            count = self._output.count(token)
            scores[0, token] -= self._params.presence_penalty
            scores[0, token] -= self._params.frequency_penalty * count
        return scores


def measure(folder: Path, rows: int, tokens: int) -> list[dict[str, Any]]:
    """A line for each setting."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lines = {name: Line(name) for name in SETTINGS}
    for name, row, entries in sample(folder, rows, tokens):
        chosen = [entry.token_id for entry in entries]
        raw, processed, ties = reference(model, row, chosen)
        for place, entry in enumerate(entries):
            drawn, plain = float(processed[place, chosen[place]]), float(raw[place, chosen[place]])
            lines[name].add(entry, plain, drawn, tied=ties[place])
    return [line.shown(folder.name) for line in lines.values()]


@dataclass
class Line:
    """The largest differences under one setting, in nats."""

    setting: str
    tokens: int = 0
    ties: int = 0
    processed: float = 0.0
    raw: float = 0.0
    mistaken: float = 0.0

    def add(self, entry: TokenLogprob, plain: float, drawn: float, *, tied: bool) -> None:
        """Compare a token with torch's raw and processed log-probabilities."""
        if entry.processed is None:
            raise RuntimeError("the engine gave no processed log-probability")
        self.tokens += 1
        self.ties += tied
        self.raw = max(self.raw, abs(entry.logprob - plain))
        if not tied:
            self.processed = max(self.processed, abs(entry.processed - drawn))
            self.mistaken = max(self.mistaken, abs(plain - drawn))

    def shown(self, model: str) -> dict[str, Any]:
        """A row of the table."""
        return {
            "model": model,
            "setting": self.setting,
            "tokens": self.tokens,
            "ties at a cut": self.ties,
            "processed": f"{self.processed:.1e}",
            "raw": f"{self.raw:.1e}",
            "raw taken for processed": f"{self.mistaken:.2f}",
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model-path",
        action="append",
        help="bundled (the default), a folder, or a name of bench_models.py; may be given again",
    )
    parser.add_argument("--rows", type=int, default=4, help="sequences of each setting")
    parser.add_argument("--tokens", type=int, default=48, help="of each sequence")
    parser.add_argument("--json", type=Path, help="file for all rows")
    args = parser.parse_args(arguments)
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        print(f"{', '.join(missing)} not found: pip install -e '.[rl]'", file=sys.stderr)
        return 1
    found = []
    for path in args.model_path or ["bundled"]:
        folder = BUNDLED if path == "bundled" else bench_models.folder_of(path)
        found += measure(folder, args.rows, args.tokens)
    print(format_table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
