#!/usr/bin/env python3
"""Prints the log-probability of every token of a text, asked from a server over HTTP.

scripts/logprobs.py "two plus two is four" --url http://127.0.0.1:8000
scripts/logprobs.py --file text.txt --model-path bundled --json
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import sys
from pathlib import Path

from benchlib.scoring import Scores, ScoringError, add_server_arguments, scorer
from benchlib.servers import SpawnError


def main() -> None:
    """Score the text of the command line, of a file or of standard input."""
    args = _arguments()
    try:
        text = _text(args)
        with scorer(args) as server:
            ids = server.tokenize(text)
            scores = server.score([ids])[0] if ids else Scores([], [])
    except (ScoringError, SpawnError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"logprobs: {error}")
    total = sum(p for p in scores.logprobs if p is not None)
    if args.json:
        report = {"token_ids": ids, "tokens": scores.tokens, "logprobs": scores.logprobs}
        print(json.dumps({**report, "total": total}))
        return
    for token, logprob in zip(scores.tokens, scores.logprobs, strict=True):
        print(f"{'-' if logprob is None else f'{logprob:.4f}':>10}  {token!r}")
    print(f"{total:10.4f}  total of {len(ids)} tokens")


def _text(args: argparse.Namespace) -> str:
    if args.file is not None:
        return str(args.file.read_text(encoding="utf-8"))
    return sys.stdin.read() if args.text is None else str(args.text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("text", nargs="?", help="default: standard input")
    what.add_argument("--file", type=Path, help="UTF-8 text")
    add_server_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
