"""The Trial: a grammar is compiled in a process of its own first, which can be ended.

Compiling cannot be interrupted, and a hostile grammar takes minutes and gigabytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PROGRAM = Path(__file__).with_name("trial_worker.py")


class Trial:
    """One such process; one thread at a time.

    Args:
        size: of the model's vocabulary.
        special: ids and names of its special tokens.
        max_seconds: of CPU time for one grammar.
    """

    def __init__(self, size: int, special: Iterable[tuple[int, str]], max_seconds: float) -> None:
        self._vocabulary = json.dumps({"size": size, "special": list(special)})
        self._command = [sys.executable, "-P", str(_PROGRAM), str(max_seconds)]
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Start the process, if there is none."""
        if self._is_closed:
            return
        if self._process is None or self._process.poll() is not None:
            self._end()
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
            )
            self._say(self._vocabulary)

    def error(self, source: str) -> str | None:
        """Why a grammar cannot be used, "" for no reason; None where it takes too long."""
        self.start()
        process = self._process
        if process is None or process.stdout is None:
            return None
        self._say(json.dumps(source))
        answer = process.stdout.readline()
        found = json.loads(answer) if answer else None
        return None if found is None else str(found)

    def close(self) -> None:
        """End the process, for good. Any thread may do so; whoever waits is answered."""
        self._is_closed = True
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _say(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it has ended, as reading will show
