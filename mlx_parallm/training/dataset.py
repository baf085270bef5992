"""The prompts of a training: a JSONL file, tokenized, in an order that the seed decides.

Each line is an object with `prompt` (a text that is continued as it is) or `messages` (of a
chat, put through the model's template). Its other fields are given to the rewards.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_parallm.errors import TrainingError

_PROMPT_FIELDS = ("prompt", "messages")


@dataclass(frozen=True)
class Example:
    """One line.

    Attributes:
        prompt: the text or the messages, as in the file; ids: its tokens.
        fields: everything else of the line.
    """

    prompt: Any
    ids: list[int]
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """All lines of a file.

    Attributes:
        digest: of the file's bytes; a resumed run needs the same.
        seed: of the order.
    """

    examples: list[Example]
    digest: str
    seed: int

    @classmethod
    def read(cls, file: Path, tokenizer: Any, seed: int, longest: int) -> Dataset:
        """Read a file.

        Args:
            longest: tokens that a prompt may have.

        Raises:
            TrainingError: which line cannot be used, and why.
        """
        try:
            data = file.read_bytes()
            lines = data.decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"{file}: not readable: {error}", param="data") from None
        examples = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                examples.append(_example(f"{file}:{number}", line, tokenizer, longest))
        if not examples:
            raise TrainingError(f"{file}: there are no prompts in it.", param="data")
        return cls(examples, hashlib.sha256(data).hexdigest()[:32], seed)

    def of_step(self, step: int, count: int) -> list[Example]:
        """The prompts of one step; every epoch has an order of its own."""
        size = len(self.examples)
        return [self._at(place, size) for place in range(step * count, (step + 1) * count)]

    def _at(self, place: int, size: int) -> Example:
        epoch, rest = divmod(place, size)
        order = np.random.default_rng([self.seed, epoch]).permutation(size)
        return self.examples[int(order[rest])]


def _example(place: str, line: str, tokenizer: Any, longest: int) -> Example:
    try:
        row = json.loads(line)
    except ValueError:
        raise TrainingError(f"{place}: this is not JSON.", param="data") from None
    if not isinstance(row, dict):
        raise TrainingError(f"{place}: this is no JSON object.", param="data")
    given = [name for name in _PROMPT_FIELDS if name in row]
    if len(given) != 1:
        raise TrainingError(f"{place}: one of `prompt` and `messages` is needed.", param="data")
    prompt = row[given[0]]
    ids = _encode(place, given[0], prompt, tokenizer)
    if not 0 < len(ids) <= longest:
        raise TrainingError(
            f"{place}: the prompt has {len(ids)} tokens; 1 to {longest} fit beside the answer.",
            param="data",
        )
    return Example(prompt, ids, {k: v for k, v in row.items() if k not in _PROMPT_FIELDS})


def _encode(place: str, name: str, prompt: Any, tokenizer: Any) -> list[int]:
    if name == "prompt":
        if not isinstance(prompt, str):
            raise TrainingError(f"{place}: `prompt` is a text.", param="data")
        return list(tokenizer.encode(prompt))
    try:
        return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True))
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        raise TrainingError(f"{place}: `messages` do not fit: {error}", param="data") from None
