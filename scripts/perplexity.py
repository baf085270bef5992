#!/usr/bin/env python3
"""Perplexity of texts, asked from a server over HTTP in windows that overlap.

    scripts/perplexity.py text.txt --url http://127.0.0.1:8000
    scripts/perplexity.py documents.jsonl --model-path bundled --window 512 --stride 256

A .jsonl file has one document a line, in its "text"; any other file is one document. Every
token but a document's first is scored once, with at least `window - stride` tokens before
it (fewer only in the document's first window).
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchlib.scoring import Scorer, ScoringError, add_server_arguments, scorer
from benchlib.servers import SpawnError
from benchlib.table import format_table
from tqdm import tqdm


@dataclass
class Document:
    """A text and the log-probabilities found so far, summed.

    Attributes:
        logprob: sum over the scored tokens, in nats.
        scored: how many they are.
    """

    name: str
    text: str
    ids: list[int]
    logprob: float = 0.0
    scored: int = 0


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a document, of which those from `first` on are scored."""

    document: Document
    start: int
    stop: int
    first: int


def main() -> None:
    """Score the files of the command line; print a table, and write JSON where asked."""
    args = _arguments()
    try:
        texts = [pair for file in args.files for pair in _read(file)]
        with scorer(args) as server:
            documents = [Document(name, text, server.tokenize(text)) for name, text in texts]
            window = args.window or min(1024, server.max_model_len or 1024)
            _score(server, documents, window, args.stride or max(1, window // 2), args.batch)
    except (ScoringError, SpawnError, OSError, ValueError, KeyError) as error:
        sys.exit(f"perplexity: {error}")
    rows = [_row(document.name, [document]) for document in documents]
    total = _row("total", documents)
    print(format_table([*rows, total]))
    if args.json:
        report = {"documents": rows, "total": total}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _read(file: Path) -> Iterator[tuple[str, str]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".jsonl":
        yield file.name, text
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{file.name}:{number}", json.loads(line)["text"]


def _score(server: Scorer, documents: list[Document], window: int, stride: int, batch: int) -> None:
    if not 0 < stride < window:
        raise ValueError(f"the stride must be from 1 to {window - 1}, below the window")
    todo = [w for document in documents for w in windows(document, window, stride)]
    waiting = iter(todo)
    # disable=None: no bar where nobody looks.
    with tqdm(total=len(todo), unit="window", disable=None) as bar:
        while some := list(islice(waiting, batch)):
            prompts = [w.document.ids[w.start : w.stop] for w in some]
            for place, scores in zip(some, server.score(prompts), strict=True):
                _add(place, scores.logprobs)
            bar.update(len(some))


def windows(document: Document, window: int, stride: int) -> Iterator[Window]:
    """Overlapping windows over a document; a document of one token has none."""
    size, first = len(document.ids), 1
    start = 0
    while first < size:
        stop = min(start + window, size)
        yield Window(document, start, stop, first)
        first, start = stop, start + stride


def _add(window: Window, logprobs: list[float | None]) -> None:
    scored = logprobs[window.first - window.start :]
    if None in scored:
        raise ScoringError("the server left out log-probabilities")
    window.document.logprob += sum(p for p in scored if p is not None)
    window.document.scored += len(scored)


def _row(name: str, documents: list[Document]) -> dict[str, Any]:
    scored = sum(document.scored for document in documents)
    logprob = sum(document.logprob for document in documents)
    size = sum(len(document.text.encode()) for document in documents)
    row: dict[str, Any] = {"document": name, "tokens": scored, "nats": round(-logprob, 4)}
    row["perplexity"] = round(math.exp(-logprob / scored), 4) if scored else None
    row["bits per byte"] = round(-logprob / math.log(2) / size, 4) if scored else None
    return row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE")
    add_server_arguments(parser)
    add("--window", type=int, help="tokens at once; default: 1024 or the model's context")
    add("--stride", type=int, help="tokens from one window to the next; default: half a window")
    add("--batch", type=int, default=8, help="windows in one request")
    add("--json", type=Path, help="file for all figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
