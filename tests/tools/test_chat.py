"""`mlx_parallm_chat` at a terminal: messages, commands, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_S

COMMAND = [sys.executable, "-m", "mlx_parallm.tools.chat"]
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A program at a pseudo-terminal."""

    def __init__(self, arguments: list[str], cache: Path) -> None:
        self._main, terminal = pty.openpty()
        variables = {
            "MLX_PARALLM_CACHE": str(cache),
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "TERM": "xterm",
            "NO_PROXY": "127.0.0.1",
        }
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=os.environ | variables,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            preexec_fn=_own_terminal,
        )
        os.close(terminal)
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def wait_for(self, pattern: str, seconds: float = PATIENCE_S) -> str:
        """What was shown up to a pattern, without colours; the rest stays for the next call."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self._shown)):
            assert time.monotonic() < until, f"{pattern} is not in {self._shown!r}"
            if select.select([self._main], [], [], 0.1)[0]:
                data = os.read(self._main, 65536).decode(errors="replace")
                self._shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data)
        before = self._shown[: found.end()]
        self._shown = self._shown[found.end() :]
        return before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        os.close(self._main)


def _own_terminal() -> None:
    """Ctrl-C at the pseudo-terminal reaches the program, as at a real one."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells have background jobs ignore it
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Any]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(list(arguments), tmp_path))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_a_conversation_with_the_bundled_model(open_terminal: Any, tmp_path: Path) -> None:
    terminal = open_terminal("--temperature", "0")
    terminal.wait_for("bundled at http://127.0.0.1:.*help says more")
    terminal.type("What is 34 plus 25?\r")
    terminal.wait_for(r"34 \+ 25 = 59")
    terminal.type("/help\r")
    terminal.wait_for("Ctrl-D leaves")
    terminal.type("/logprobs\r")
    terminal.wait_for("probabilities on")
    terminal.type("What is 11 plus 12?\r")
    terminal.wait_for(r"= 23[^?]*tokens, \d+% each on average; least sure: '")
    terminal.type("/system Be brief.\r")
    terminal.wait_for("system prompt set")
    terminal.type(f"/save {tmp_path}/talk.json\r")
    terminal.wait_for("saved as")
    terminal.type("/nonsense\r")
    terminal.wait_for(r"no command /nonsense[^>]*>")
    terminal.type(CTRL_D)
    assert terminal.process.wait(PATIENCE_S) == 0
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["role"] for m in saved] == ["system", "user", "assistant", "user", "assistant"]
    assert saved[0]["content"] == "Be brief."
    assert "What is 11 plus 12?" in (tmp_path / "chat" / "history").read_text()


def test_its_server_ends_with_it(open_terminal: Any) -> None:
    terminal = open_terminal()
    shown = terminal.wait_for(r"bundled at http://127.0.0.1:\d+;")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    port = int(re.findall(r":(\d+);", shown)[0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


class _Slow(BaseHTTPRequestHandler):
    """A server whose answers never end, and one that breaks."""

    asked: list[dict[str, Any]]
    left: threading.Event

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._begin()
        self.wfile.write(b'{"data": [{"id": "slow"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self._begin()
        if body["messages"][-1]["content"] == "break":
            self._send({"choices": [{"delta": {"content": "half"}}]})
            self._send({"error": {"message": "it broke"}})
            return
        try:
            while True:
                self._send({"choices": [{"delta": {"content": "more and "}}]})
                time.sleep(0.02)
        except OSError:
            self.left.set()

    def _begin(self) -> None:
        self.send_response(200)
        self.end_headers()

    def _send(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@pytest.fixture
def slow() -> Iterator[tuple[str, type[_Slow]]]:
    kind = type("Slow", (_Slow,), {"asked": [], "left": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    server.server_close()


def test_ctrl_c_stops_the_answer_only(open_terminal: Any, slow: tuple[str, type[_Slow]]) -> None:
    url, server = slow
    terminal = open_terminal("--url", url)
    terminal.wait_for("slow at ")
    terminal.type("begin\r")
    terminal.wait_for("more and more")
    terminal.type(CTRL_C)
    terminal.wait_for(r"\[stopped\]\s*>")
    assert server.left.wait(PATIENCE_S)
    terminal.type("break\r")
    terminal.wait_for("it broke")
    terminal.type("go on\r")
    terminal.wait_for("more and more")
    terminal.type(CTRL_C)
    terminal.wait_for(r"\[stopped\]\s*>")
    terminal.type(CTRL_D)
    assert terminal.process.wait(PATIENCE_S) == 0
    said = [message["content"] for message in server.asked[-1]["messages"]]
    assert said[0] == "begin"
    assert said[1].startswith("more and ")
    assert said[2:] == ["go on"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--url", "http://127.0.0.1:9"], 1, "http://127.0.0.1:9 does not answer"),
        (["--url", "http://127.0.0.1:9", "--model-path", "x"], 2, "takes no options"),
        (["--model-path", "./nowhere"], 1, "the server did not start"),
    ],
)
def test_no_server(arguments: list[str], code: int, reason: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], input="", capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert reason in done.stderr.splitlines()[-1]
