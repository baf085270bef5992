"""From questions to rows of the running batch, and from what they gave to probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.sequence import SamplingParams
from mlx_parallm.engine.sequence import Sequence as EngineSequence
from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.models.vision.prepared import Prepared
from mlx_parallm.server.compat.turns import content_of
from mlx_parallm.server.decisions.labels import Labels, Place
from mlx_parallm.server.decisions.option_tree import OptionTree, Prefix, probabilities
from mlx_parallm.server.decisions.question import Question, about
from mlx_parallm.server.decisions.told import Decision, Told, key_of
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.input.pictures.asked import AskedPicture
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import Prompt, Prompts
from mlx_parallm.server.schemas.chat import ChatTemplateFields

# What a model without a chat template reads behind the question.
_ANSWER = "\nAnswer:"
# How a prompt ends does not depend on what it asks.
_STUB = "x"


@dataclass(slots=True)
class _Asked:
    """A question on its way: its rows' tracks, by the tokens behind the prompt."""

    prompt: Prompt
    tree: OptionTree
    tracks: dict[Prefix, Track]


class Decider:
    """The questions of one request.

    Args:
        told: answers that were given before.
        noise: how far products of other batches may be off, see told.py.
        variables: for the chat template.
        priority: lower is served first.
        limit: rows that the request may have.
    """

    def __init__(
        self,
        prompts: Prompts,
        told: Told,
        *,
        noise: float,
        namespace: Namespace,
        variables: dict[str, Any],
        limit: int,
        priority: int = 0,
    ) -> None:
        self._prompts = prompts
        self._told = told
        self._noise = noise
        self._namespace = namespace
        self._variables = variables
        self._limit = limit
        self._priority = priority
        self._asked: list[_Asked] = []
        self.tracks: list[Track] = []

    async def ask(
        self,
        state: str,
        questions: Sequence[Question],
        instructions: str = "",
        pictures: Sequence[AskedPicture] = (),
    ) -> None:
        """Make the rows; they are to be collected before decisions() is called.

        Args:
            pictures: that belong to what is asked about.

        Raises:
            InvalidRequestError, ContextLengthError: a question cannot be asked.
        """
        labels = await self._labels()
        trees = [labels.tree(question) for question in questions]
        rows = sum(len(tree.rows) for tree in trees)
        if rows > self._limit:
            raise InvalidRequestError(
                f"These questions need {rows} rows, and this server takes {self._limit} at once; "
                "send fewer of them in a request.",
                param="questions",
            )
        prepared = await self._prompts.pictures.prepare(pictures)
        for question, tree in zip(questions, trees, strict=True):
            text = about(state, question, instructions)
            prompt = await self._prompt(text, pictures, prepared)
            self._add(prompt, tree)

    def decisions(self) -> list[Decision]:
        """The answers, in the questions' order."""
        return [self._decided(asked) for asked in self._asked]

    def _decided(self, asked: _Asked) -> Decision:
        found = {tokens: dict(track.logprobs[0].top) for tokens, track in asked.tracks.items()}
        logprobs = asked.tree.logprobs(found)
        mass = min(1.0, math.fsum(math.exp(value) for value in logprobs))
        root = asked.tracks[()]
        likeliest = root.logprobs[0].token_id
        fresh = Decision(tuple(probabilities(logprobs)), mass, likeliest in found[()])
        # The sequence's own namespace: it has the adapter and its version.
        media = asked.prompt.media
        shown = asked.prompt.ids if media is None else media.keys
        key = key_of(root.sequence.namespace, shown, asked.tree.options)
        return self._told.settled(key, fresh, self._noise)

    def usage(self) -> dict[str, Any]:
        """Tokens; a question whose options need several rows has one prompt."""
        first = [asked.tracks[()] for asked in self._asked]
        read = sum(len(track.prompt.ids) for track in first)
        cached = sum(track.cached_tokens for track in first)
        written = sum(len(track.token_ids) for track in self.tracks)
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": read - cached},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }

    def _add(self, prompt: Prompt, tree: OptionTree) -> None:
        asked = _Asked(prompt, tree, {})
        for tokens, wanted in tree.rows:
            params = SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprobs=0,
                logprob_token_ids=wanted,
                speculative=False,
            )
            ids = [*prompt.ids, *tokens]
            self._prompts.max_tokens(1, None, Prompt(ids, None))
            media = prompt.media
            sequence = EngineSequence(
                ids,
                params,
                priority=self._priority,
                namespace=self._namespace,
                media=None if media is None else media.before(ids),
            )
            stream = TextStream(self._prompts.tokenizer, params)
            track = Track(sequence, stream, len(self.tracks), prompt)
            asked.tracks[tokens] = track
            self.tracks.append(track)
        self._asked.append(asked)

    async def _labels(self) -> Labels:
        made = await self._prompt(_STUB)
        spaced = not self._prompts.tokenizer.has_chat_template
        place = Place(made.text or "", tuple(made.ids), spaced)
        return Labels(self._prompts, place, self._prompts.tokenizer.eos_token_id)

    async def _prompt(
        self,
        text: str,
        pictures: Sequence[AskedPicture] = (),
        prepared: Sequence[Prepared] = (),
    ) -> Prompt:
        if not self._prompts.tokenizer.has_chat_template:
            if pictures:
                raise UnsupportedError(
                    "Without a chat template there is no place for pictures.",
                    param=pictures[0].param,
                )
            ids = await self._prompts.tokenize(text + _ANSWER, False)
            return Prompt(ids, text + _ANSWER)
        body = ChatTemplateFields.model_validate(
            {
                "messages": [{"role": "user", "content": content_of([*pictures, text])}],
                "chat_template_kwargs": self._variables,
            }
        )
        return await self._prompts.conversation(body, [], False, limited=True, prepared=prepared)
