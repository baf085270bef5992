"""Real servers as their own processes, for real clients: a random tiny model, a scripted one.

The random model's texts are compared with plain mlx-lm. The scripted one calls the tools that it
is offered, once each, and then says ANSWER, after some thinking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_models
import mlx.core as mx
import pytest
from benchlib.model_files import scripted
from benchlib.servers import our_command, spawn
from mlx_lm import load, stream_generate

from tests.clients.weather import ANSWER, THOUGHT

SERVED = "tiny"
SCRIPTED = "scripted"
# Tools, by the names that the frameworks give them.
_SCRIPTS = {
    "get_weather": "I look. " + scripted.call("get_weather", city="Paris"),
    "transfer_to_weather_expert": scripted.call("transfer_to_weather_expert"),
    "final_result": scripted.call("final_result", city="Paris", degrees=21),
    "Weather": scripted.call("Weather", city="Paris", degrees=21),
    scripted.END: f"<think>{THOUGHT}</think>{ANSWER}",
}


@dataclass(frozen=True)
class Oracle:
    """What plain mlx-lm computes with the same model, one request at a time."""

    model: Any
    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self.tokenizer.encode(text))

    def generate(self, prompt: list[int] | str, tokens: int) -> str:
        """Greedy text of mlx_lm's tokens.

        Decoded here, since mlx-lm's own text loses a space at its beginning.
        """
        made = stream_generate(self.model, self.tokenizer, prompt, max_tokens=tokens)
        ids = [response.token for response in made]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def chat_prompt(self, text: str) -> list[int]:
        """Token ids of one user's message through the chat template."""
        messages = [{"role": "user", "content": text}]
        return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def logprobs(self, ids: list[int]) -> list[float]:
        """Natural log-probability of each token but the first, from one forward."""
        rows = self.distribution(ids)[:-1]
        return [row[token] for row, token in zip(rows, ids[1:], strict=True)]

    def distribution(self, ids: list[int]) -> list[list[float]]:
        """(tokens, vocabulary) log-probabilities of what follows each token."""
        logits = self.model(mx.array([ids]))[0].astype(mx.float32)
        found: list[list[float]] = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
        return found


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in Hugging Face format."""
    return bench_models.ensure("tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def oracle(model_folder: Path) -> Oracle:
    """The same model in this process."""
    model, tokenizer, *_ = load(str(model_folder))
    return Oracle(model, tokenizer)


@pytest.fixture(scope="session")
def server_url(model_folder: Path) -> Iterator[str]:
    """Root of a running server, without a slash at the end."""
    with spawn(SERVED, our_command(model_folder, "--served-model-name", SERVED)) as server:
        yield server.url


@pytest.fixture(scope="session")
def scripted_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Root of a running server whose model follows a script."""
    folder = scripted.make(tmp_path_factory.mktemp("models") / "scripted", _SCRIPTS)
    with spawn(SCRIPTED, our_command(folder, "--served-model-name", SCRIPTED)) as server:
        yield server.url
