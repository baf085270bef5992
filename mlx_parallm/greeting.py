"""What the server says once its model is loaded: a block on a terminal, lines in a log."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_parallm.settings import Settings


@dataclass(frozen=True, slots=True)
class Greeting:
    """The facts of a server that is ready.

    address: "http://127.0.0.1:8000". device: as in "CPU" or "Apple M2". seconds: to get ready.
    memory: bytes for K and V.
    """

    settings: Settings
    address: str
    parameters: int
    dtype: str
    context: int
    device: str
    blas: str
    memory: int
    seconds: float

    def line(self) -> str:
        """Where it is and what it serves, in one line that scripts can wait for."""
        return (
            f"mlx_parallm serves {self._name} at {self.address} "
            f"({self._size}, context {self.context}, batch {self.settings.max_batch_size}, "
            f"ready in {self.seconds:.1f} s; Ctrl-C stops)"
        )

    def facts(self) -> list[tuple[str, str]]:
        """Label and text of each fact."""
        batch = self.settings.max_batch_size
        return [
            ("model", f"{self._name} ({self._size}, context {self.context:,} tokens)"),
            ("device", self.device),
            ("BLAS", self.blas),
            (
                "memory",
                f"{self.memory / 1e9:.2f} GB for K and V, at most {batch} sequences at once",
            ),
            *([] if self.settings.no_ui else [("page", f"{self.address}/")]),
            ("API", f"{self.address}/v1"),
            ("docs", f"{self.address}/docs"),
        ]

    def block(self) -> str:
        """All facts and a request to paste, for a terminal."""
        facts = "\n".join(f"  {label:<8}{text}" for label, text in self.facts())
        return (
            f"mlx_parallm is ready at {self.address} (in {self.seconds:.1f} s; Ctrl-C stops)\n\n"
            f"{facts}\n\nTry it:\n\n{self.curl()}\n"
        )

    def curl(self) -> str:
        """A command that asks the server something."""
        key = "  -H 'Authorization: Bearer YOUR_KEY' \\\n" if self.settings.has_keys else ""
        return (
            f"curl -s {self.address}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
            f"{key}"
            '  -d \'{"messages": [{"role": "user", "content": "What is 34 plus 25?"}]}\''
        )

    @property
    def _name(self) -> str:
        return self.settings.model_names[0]

    @property
    def _size(self) -> str:
        return f"{self.parameters / 1e6:.1f}M parameters, {self.dtype}"
