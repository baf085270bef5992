"""What the clients of a benchmark ask a server for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

SAMPLING: dict[str, list[dict[str, Any]]] = {
    "greedy": [{"temperature": 0}],
    "plain": [{"temperature": 1.0}],
    "top_p": [{"temperature": 0.8, "top_p": 0.95}],
    "seeded": [{"temperature": 0.8, "top_p": 0.95, "seed": seed} for seed in range(1, 65)],
    "mixed": [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.95},
        {"temperature": 0.7, "top_k": 40},
        {"temperature": 0.9, "min_p": 0.05},
        {"temperature": 0.7, "repetition_penalty": 1.1},
    ],
}

# (tokens, random numbers) -> the prompt: a text or token ids.
MakePrompt = Callable[[int, random.Random], Any]


@dataclass(frozen=True)
class Load:
    """One run's requests.

    Attributes:
        prompt: tokens of each prompt; all prompts are different.
        output: tokens of each answer.
        clients: each sends its next request when its last one is answered.
        requests: of all clients together.
        sampling: a key of SAMPLING; its settings are taken in turn.
        rate: Poisson arrivals a second instead of waiting clients.
        shared_prefix: share (0..1) of each prompt that all begin with.
        ignore_eos: ask for answers of full length; a server may not know the field.
    """

    prompt: int
    output: int
    clients: int
    requests: int
    sampling: str = "greedy"
    rate: float | None = None
    shared_prefix: float = 0.0
    chat: bool = False
    stream: bool = True
    ignore_eos: bool = True

    @property
    def path(self) -> str:
        """The endpoint."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def bodies(self, model: str, make_prompt: MakePrompt, seed: str) -> Iterator[dict[str, Any]]:
        """The requests' bodies; the same seed makes the same prompts."""
        rng = random.Random(seed)
        shared = round(self.prompt * self.shared_prefix)
        prefix = make_prompt(shared, random.Random(0))
        mix = SAMPLING[self.sampling]
        for number in range(self.requests):
            prompt = prefix + make_prompt(self.prompt - shared, rng)
            yield self._fields(model, prompt) | mix[number % len(mix)]

    def _fields(self, model: str, prompt: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "max_tokens": self.output}
        if self.chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


def prompts_for(folder: Path) -> MakePrompt:
    """Texts of random words, each of which is one token of the model in that folder.

    Raises:
        ValueError: the tokenizer has too few such words.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    shaped = [t[1:] for t in tokenizer.get_vocab() if re.fullmatch("[Ġ▁][a-z]{3,}", t)]
    encoded = tokenizer.encode_batch([f" {word}" for word in shaped], add_special_tokens=False)
    words = sorted(word for word, ids in zip(shaped, encoded, strict=True) if len(ids) == 1)
    if len(words) < 100:
        raise ValueError(f"{folder}: its tokenizer has too few words of one token")

    def make(count: int, rng: random.Random) -> str:
        return "".join(f" {rng.choice(words)}" for _ in range(count))

    return make
