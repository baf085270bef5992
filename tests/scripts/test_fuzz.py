"""scripts/fuzz.py: broken requests are no fault of the server, and faults are seen."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import fuzz

from tests.waiting import PATIENCE_S

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


def test_a_thousand_broken_requests_harm_nobody() -> None:
    command = [sys.executable, str(SCRIPT), "--count", "1000", "--every", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1000 requests" in done.stdout and "'400'" in done.stdout


def test_an_answer_of_500_is_a_failure() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def run() -> fuzz.Run:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fuzzer = fuzz.Fuzzer({"/v1/completions": {"prompt": "x"}}, 0)
        sent = fuzz.Run(f"http://127.0.0.1:{port}", fuzzer, 40, PATIENCE_S)
        async with server:
            await sent.all(2)
        return sent

    found = asyncio.run(run())
    assert found.statuses["500"] > 10
    assert found.failures[0].startswith("500: ")
