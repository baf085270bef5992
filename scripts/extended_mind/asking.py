"""Asks a model questions in its chat, with a text in context or in memory, many at a time."""

from __future__ import annotations

from collections.abc import Hashable

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import MAX_WIDTH, BatchedCache
from mlx_parallm.cache.retrieval import LayerMemory
from mlx_parallm.memory.capture import Capture, windows
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.memory.view import MemoryView, Position, build_layer
from mlx_parallm.models.loader import LoadedModel

ANSWER = 16  # tokens at most
_MARK = "\x00"


class _Document:
    def __init__(self, size: int) -> None:
        self.num_memories = size


def shuffled(view: MemoryView, seed: int) -> MemoryView:
    """The same memories, but each with the V of another one."""
    order = mx.array(np.random.default_rng(seed).permutation(view.size))
    layers = [
        LayerMemory(layer.unit * layer.norms[..., None], layer.values[:, order])
        for layer in view.layers
    ]
    return MemoryView(("shuffled", *view.key), view.position, view.documents, layers)


class Asker:
    """Greedy answers of a model, each question a row of one batch.

    Args:
        loaded: with a chat template.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.capture = Capture(loaded.model)
        self._ends = set(loaded.tokenizer.eos_token_ids)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """A text's tokens, without special ones."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def remember(
        self, text: str, key: Hashable, *, window: int, stride: int, position: Position = "zero"
    ) -> MemoryView:
        """A text's memories."""
        ids = np.array(self.encode(text), dtype=np.int32)
        parts: list[list[tuple[mx.array, mx.array]]] = [[] for _ in range(self.capture.num_layers)]
        for part in windows(len(ids), window, stride):
            for _, kept in self.capture.steps(ids, part, lambda: MAX_WIDTH):
                for layer, pair in enumerate(kept):
                    parts[layer].append(pair)
        view = MemoryView((key,), position, (_Document(len(ids)),))  # type: ignore[arg-type]
        for layer, pairs in enumerate(parts):
            view.layers.append(build_layer(pairs, layer, position, self.capture.rotate))
        return view

    def answers(
        self, questions: list[str], before: str = "", request: MemoryRequest | None = None
    ) -> list[str]:
        """One answer a question.

        Args:
            before: stands in front of each question, in the same turn.
            request: what all of them remember.
        """
        head, tail = self._turn()
        cache = BatchedCache(self.model)
        first = cache.join()
        if request is not None:
            first.memory, first.shift = request, request.shift
        self._read(cache, self.encode(head + before))
        for _ in questions[1:]:
            cache.fork(first)
        space = " " if before else ""
        prompts = [self.encode(f"{space}{question}{tail}") for question in questions]
        return [self.tokenizer.decode(ids) for ids in self._generate(cache, prompts)]

    def _turn(self) -> tuple[str, str]:
        """What the chat template writes around a question."""
        text: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], add_generation_prompt=True, tokenize=False
        )
        head, _, tail = text.partition(_MARK)
        return head, tail

    def _read(self, cache: BatchedCache, ids: list[int]) -> None:
        """Run tokens through the only row."""
        for at in range(0, len(ids), MAX_WIDTH):
            self._forward(cache, [ids[at : at + MAX_WIDTH]])
            mx.eval(cache.arrays)

    def _generate(self, cache: BatchedCache, prompts: list[list[int]]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        running, feed = set(range(len(prompts))), prompts
        for _ in range(ANSWER):
            tokens = self._forward(cache, feed)
            for row in sorted(running):
                if tokens[row] in self._ends:
                    running.discard(row)
                else:
                    answers[row].append(tokens[row])
            if not running:
                break
            feed = [[token] for token in tokens]
        return answers

    def _forward(self, cache: BatchedCache, rows: list[list[int]]) -> list[int]:
        """The most likely next token of each row."""
        counts = [len(row) for row in rows]
        inputs = np.zeros((len(rows), max(counts)), dtype=np.int32)
        for place, row in enumerate(rows):
            inputs[place, : len(row)] = row
        cache.begin(0, len(rows), max(counts), counts)
        logits = self.model(mx.array(inputs), cache=cache.layers)
        cache.commit()
        last = logits[mx.arange(len(rows)), mx.array(counts) - 1]
        return [int(token) for token in np.array(mx.argmax(last, axis=-1))]
