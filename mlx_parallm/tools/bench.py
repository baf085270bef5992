"""`mlx_parallm bench`: how fast a server is, in a minute.

Streams completions of prompts that have nothing in common, so that no cache helps, first one
at a time and then several at once. Reports the time to the first token and tokens a second.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mlx_parallm.tools.own_server import ServerStartError, running_server

_WORDS = "river stone seven under light paper almost green window market forty silent".split()
_TIMEOUT_S = 600


class BenchError(RuntimeError):
    """It cannot be measured; the message is one line."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One streamed answer: moments in seconds, tokens as the server counts them."""

    began: float
    first: float
    ended: float
    prompt_tokens: int
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens a second after the first one."""
        return (self.tokens - 1) / max(self.ended - self.first, 1e-9)


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured with so many requests at once."""

    concurrency: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    first_token_ms: float
    first_token_ms_worst: float
    tokens_per_s_each: float
    tokens_per_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a server and print a table, or JSON."""
    args, for_server = _parser().parse_known_args(argv)
    if args.url and for_server:
        sys.stderr.write(f"mlx_parallm bench: error: unknown option {for_server[0]}\n")
        return 2
    try:
        with running_server(args.url, for_server) as url:
            report = _measure(Client(url, args.api_key), args)
    except (BenchError, ServerStartError) as error:
        sys.stderr.write(f"mlx_parallm bench: error: {error}\n")
        return 1
    if args.json == "-":
        print(json.dumps(report, indent=2))
        return 0
    print(_table(report))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlx_parallm bench",
        description=__doc__,
        usage="%(prog)s [options] [MODEL and options of mlx_parallm_serve | --url URL]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--url", help="a running server; without it one is started")
    parser.add_argument("--api-key", metavar="KEY", help="of that server")
    parser.add_argument(
        "--concurrency", type=_count, nargs="+", default=[1, 8], metavar="N", help="default: 1 8"
    )
    parser.add_argument(
        "--requests", type=_count, metavar="N", help="of each; default: 4 for each at once"
    )
    parser.add_argument(
        "--words", type=_count, default=64, metavar="N", help="of a prompt (default: 64)"
    )
    parser.add_argument(
        "--tokens", type=_count, default=64, metavar="N", help="of an answer (default: 64)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures; - prints them instead")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, not {text!r}")
    return int(text)


class Client:
    """One server over HTTP."""

    def __init__(self, url: str, api_key: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise BenchError(f"{url} is not an http:// or https:// address")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def model(self) -> str:
        """The name of the model that is served first."""
        with self._open("/v1/models") as answer:
            return str(json.load(answer)["data"][0]["id"])

    def complete(self, model: str, prompt: str, tokens: int) -> Timing:
        """Stream one completion of exactly `tokens` tokens."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, first, usage = time.perf_counter(), 0.0, None
        with self._open("/v1/completions", body) as answer:
            for event in _events(answer):
                if "error" in event:
                    raise BenchError(f"the server answered with an error: {event['error']}")
                first = first or time.perf_counter()
                usage = event.get("usage") or usage
        if usage is None:
            raise BenchError("the stream ended without its usage")
        ended = time.perf_counter()
        return Timing(
            began, first, ended, usage["prompt_tokens"], max(1, usage["completion_tokens"])
        )

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)  # noqa: S310
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            reason = error.read(300).decode(errors="replace")
            raise BenchError(f"{self.url}{path} answered {error.code}: {reason}") from None
        except OSError as error:
            raise BenchError(f"{self.url} does not answer: {error}") from None


def _events(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON of a stream of server-sent events."""
    for line in lines:
        text = line.decode().strip()
        if text.startswith("data: ") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data: "))


def _measure(client: Client, args: argparse.Namespace) -> dict[str, Any]:
    model = client.model()
    rows = [_measure_at(client, model, args, concurrency) for concurrency in args.concurrency]
    return {"url": client.url, "model": model, "results": [asdict(row) for row in rows]}


def _measure_at(client: Client, model: str, args: argparse.Namespace, concurrency: int) -> Row:
    def ask(number: int) -> Timing:
        return client.complete(model, _prompt(args.words, number), args.tokens)

    requests = max(concurrency, args.requests or 4 * concurrency)
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(ask, range(-concurrency, 0)))  # shapes that are new to the server
        timings = list(pool.map(ask, range(requests)))
    seconds = max(t.ended for t in timings) - min(t.began for t in timings)
    first = [1e3 * (t.first - t.began) for t in timings]
    return Row(
        concurrency,
        requests,
        prompt_tokens=round(median(t.prompt_tokens for t in timings)),
        output_tokens=round(median(t.tokens for t in timings)),
        first_token_ms=round(median(first), 2),
        first_token_ms_worst=round(max(first), 2),
        tokens_per_s_each=round(median(t.rate for t in timings), 1),
        tokens_per_s=round(sum(t.tokens for t in timings) / seconds, 1),
    )


def _prompt(words: int, number: int) -> str:
    """Words that begin differently in every run and for every number."""
    chance = random.Random(f"{number} {time.time_ns()}")
    return " ".join([str(chance.randrange(10**6)), *chance.choices(_WORDS, k=words - 1)])


def _table(report: dict[str, Any]) -> str:
    head = "at once  requests  prompt  answer  first token ms (worst)  tokens/s each  tokens/s"
    lines = [f"{report['model']} at {report['url']}", "", head]
    for row in report["results"]:
        first = f"{row['first_token_ms']:.1f} ({row['first_token_ms_worst']:.1f})"
        lines.append(
            f"{row['concurrency']:>7}  {row['requests']:>8}  {row['prompt_tokens']:>6}  "
            f"{row['output_tokens']:>6}  {first:>22}  {row['tokens_per_s_each']:>13.1f}  "
            f"{row['tokens_per_s']:>8.1f}"
        )
    note = "Median time to the first token; tokens/s each counts from it, tokens/s all requests."
    return "\n".join([*lines, "", note])
