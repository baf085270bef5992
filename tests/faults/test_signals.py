"""SIGTERM and SIGKILL under load: what was accepted is answered, what was kept is there."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.server.conftest import wait_until

PROMPTS = [f"What is {place} plus {place}?" for place in range(6)]


class Process:
    """The server as a process of its own, with the bundled model."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "mlx_parallm.cli", "--port", "0", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http"))
        self.http = httpx.Client(base_url=url, timeout=120)

    def text_of(self, prompt: str, tokens: int) -> Any:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    def running(self) -> int:
        return int(self.http.get("/debug/metrics").json()["engine"]["running"])


@contextmanager
def started(*flags: str) -> Iterator[Process]:
    server = Process(*flags)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()
        server.http.close()


def test_sigterm_under_load_finishes_what_was_accepted() -> None:
    with started() as server, ThreadPoolExecutor(6) as pool:
        right = [server.text_of(prompt, 60) for prompt in PROMPTS]
        asked = [pool.submit(server.text_of, prompt, 60) for prompt in PROMPTS]
        wait_until(lambda: server.running() == 6 or all(one.done() for one in asked), 120)
        server.process.send_signal(signal.SIGTERM)
        assert [one.result() for one in asked] == right
        assert server.process.wait(120) == 0


def test_after_sigkill_under_load_everything_kept_is_there(tmp_path: Path) -> None:
    flags = (
        *("--memory-dir", str(tmp_path / "memories")),
        *("--prefix-cache-dir", str(tmp_path / "prefixes"), "--prefix-cache-memory", "1MB"),
        *("--response-store", str(tmp_path / "responses.db")),
    )
    memories = "/v1/models/bundled/memories"
    with started(*flags) as server, ThreadPoolExecutor(6) as pool:
        right = [server.text_of(prompt, 20) for prompt in PROMPTS]
        text = {"collection": "notes", "text": "The code of Mira is 57."}
        accepted = server.http.post(memories, json=text)
        assert accepted.status_code == 202
        asked = [pool.submit(server.text_of, prompt * 9, 400) for prompt in PROMPTS]
        wait_until(lambda: server.running() > 0 or all(one.done() for one in asked), 120)
        server.process.kill()
        server.process.wait(120)
    with started(*flags) as server:
        assert [server.text_of(prompt, 20) for prompt in PROMPTS] == right
        # Accepted was: it is on disk.
        wait_until(lambda: '"notes"' in server.http.get(memories).text, 120)
        answer = server.http.post("/v1/responses", json={"input": "hello"})
        assert answer.status_code == 200
        assert server.http.get(f"/v1/responses/{answer.json()['id']}").status_code == 200
        assert server.http.get("/health").status_code == 200
