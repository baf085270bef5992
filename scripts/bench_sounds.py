#!/usr/bin/env python3
"""What sounds cost the streams beside them: gaps between tokens, with and without.

    scripts/bench_sounds.py
    scripts/bench_sounds.py --rounds 3 --sounds 8

Clients read streams of the chat model over HTTP, alone and while others have sounds of 30 s
written down by a Whisper of random weights in the size of whisper-tiny, one after the other.
Ratios are of the same round.
"""

from __future__ import annotations

import in_venv  # isort: skip  (starts this script again in .venv)
import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import argparse
import asyncio
import io
import sys
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path

import httpx
from benchlib.load_client import Target, closed_loop
from benchlib.servers import our_command, spawn
from benchlib.table import format_table, percentile, spread_of

sys.path.insert(0, str(in_venv.ROOT))  # the random model is made as the tests' are

from tests.models.audio.tiny_whisper import Sizes, make_tiny_whisper, melody

WHISPER_TINY = Sizes(width=384, layers=4, heads=6, encoder=(4, 6), context=448)
SOUND_SECONDS = 30.0
PATIENCE_S = 600.0
# One attempt a window: random weights would have every one tried six times.
FORM = {"temperature": "0.05", "language": "en"}


def wav(seed: int) -> bytes:
    """A sound as a file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((melody(SOUND_SECONDS, seed) * 32767).astype("<i2").tobytes())
    return out.getvalue()


class Bench:
    """One server under two loads.

    Args:
        streams: clients that read text. requests: of each. tokens: of an answer.
    """

    def __init__(self, url: str, streams: int, requests: int, tokens: int) -> None:
        self._url, self._streams = url, streams
        self._target = Target(url, "/v1/completions")
        body = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        self._requests = [
            self._target.request(body | {"prompt": f"Story number {place}:"})
            for place in range(streams * requests)
        ]

    async def gaps(self, files: Sequence[bytes] = ()) -> list[float]:
        """Seconds between the texts of streams, while each of these is written down over and
        over."""
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE_S) as http:
            writers = [asyncio.create_task(self._write_down(http, file)) for file in files]
            if files:
                await self._until_decoded(writers)
            run = await closed_loop(self._target, self._requests, self._streams, PATIENCE_S)
            for writer in writers:
                if writer.done():
                    writer.result()
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
        if faults := [reply.error for reply in run.replies if reply.error]:
            raise SystemExit(f"a stream failed: {faults[0]}")
        return [gap for reply in run.replies for gap in reply.gaps]

    @staticmethod
    async def _write_down(http: httpx.AsyncClient, file: bytes) -> None:
        while True:
            answer = await http.post(
                "/v1/audio/transcriptions", data=FORM, files={"file": ("a.wav", file)}
            )
            answer.raise_for_status()

    @staticmethod
    async def _until_decoded(writers: Sequence[asyncio.Task[None]]) -> None:
        """Files are decoded first; what goes wrong with one ends the benchmark."""
        done, _ = await asyncio.wait(writers, timeout=2)
        for writer in done:
            writer.result()


def measured(bench: Bench, files: Sequence[bytes]) -> dict[str, float]:
    """One round of everything."""
    found: dict[str, float] = {}
    alone, beside = asyncio.run(bench.gaps()), asyncio.run(bench.gaps(files))
    for name, share in (("p50", 0.5), ("p95", 0.95), ("largest", 1.0)):
        plain, loaded = percentile(alone, share) or 0.0, percentile(beside, share) or 0.0
        found[f"{name}, ms"] = 1e3 * plain
        found[f"{name} beside sounds, ms"] = 1e3 * loaded
        found[f"{name} beside sounds, over without"] = loaded / (plain or 1.0)
    return found


def run(options: argparse.Namespace) -> list[dict[str, float]]:
    """All rounds, after one that counts for nothing."""
    files = [wav(seed) for seed in range(options.sounds)]
    with tempfile.TemporaryDirectory() as folder:
        whisper = make_tiny_whisper(Path(folder) / "whisper", sizes=WHISPER_TINY)
        command = our_command(options.model_path, "--transcription-model", str(whisper))
        with spawn("ours", command) as server:
            measured(Bench(server.url, options.streams, 1, 64), files)
            bench = Bench(server.url, options.streams, options.requests, options.tokens)
            return [measured(bench, files) for _ in range(options.rounds)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", default="bundled", help="of the chat model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8, help="clients that read text")
    parser.add_argument("--sounds", type=int, default=8, help="clients that send sounds")
    parser.add_argument("--requests", type=int, default=2, help="of each stream's client")
    parser.add_argument("--tokens", type=int, default=400, help="of an answer")
    rounds = run(parser.parse_args(arguments))
    print(format_table(spread_of(rounds)))


if __name__ == "__main__":
    main()
