"""Chats about pictures as token ids, and batches of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from bundled.corpus import LATER_TASKS, Stage
from bundled.sample import DECISION, Message, Sample, draw, spoken
from bundled.tokenizer import encode
from tokenizers import AddedToken, Tokenizer

from .questions import ALONE, Question, question
from .scenes import Scene
from .tower import TOKENS

IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
# Tokens that idefics3's processor writes around a picture; the last one it wants to know of.
MARKS = (AROUND, IMAGE, WHOLE, "<end_of_utterance>")
# What one picture becomes in a prompt.
PICTURE = f"{AROUND}{WHOLE}{IMAGE * TOKENS}{AROUND}"

_ALONE_SHARE, _LATER_SHARE, _TEXT_SHARE = 0.15, 0.1, 0.04
# Tokens of a lesson: a batch is as wide as its longest.
_LONGEST = 80
# Weight of the words that say nothing of the picture.
_FRAME = 0.3
# Short turns without a picture that may follow: what the model could before.
_TEXT_TASKS = [task for task in LATER_TASKS if task.name in ("sums", "talk", "house", "remark")]


def picture_token(tokenizer: Tokenizer) -> int:
    """The id that stands for one token of a picture."""
    found = tokenizer.token_to_id(IMAGE)
    if found is None:
        raise ValueError(f"the tokenizer does not know {IMAGE}")
    return int(found)


def add_picture_marks(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])


@dataclass(slots=True)
class Lesson:
    """ids with IMAGE where a picture's tokens come; weights of each in the loss; aspects: of the
    questions, for the log."""

    ids: list[int]
    weights: list[float]


@dataclass(slots=True)
class Batch:
    """inputs (B, T): token ids, and V + k for token k of all pictures; rows (N,) flat positions
    whose next token is asked for; targets, weights (N,)."""

    inputs: mx.array
    rows: mx.array
    targets: mx.array
    weights: mx.array


def lesson(rng: random.Random, tokenizer: Tokenizer, scene: Scene) -> Lesson:
    """Questions about one picture, and sometimes a turn without one."""
    while len((drawn := _any_lesson(rng, tokenizer, scene)).ids) > _LONGEST:
        pass
    return drawn


def _any_lesson(rng: random.Random, tokenizer: Tokenizer, scene: Scene) -> Lesson:
    messages: list[Message] = []
    for asked in _different(rng, scene, rng.choice((1, 2, 2))):
        alone = rng.random() < _ALONE_SHARE and asked.aspect not in ("described", "blank")
        text = asked.text + (rng.choice(ALONE) if alone else "")
        if not messages:
            later = rng.random() < _LATER_SHARE
            text = f"{text}{PICTURE}" if later else f"{PICTURE}{text}"
        messages += [{"role": "user", "content": text}, _answered(asked, alone)]
    if rng.random() < _TEXT_SHARE:
        task = rng.choice(_TEXT_TASKS)
        more = draw(lambda rng: task.make(rng, Stage(0, 256)), rng, held_out=False).messages
        messages += [m for m in more if m["role"] != "system"][:2]
    return Lesson(*encode(tokenizer, Sample("taught", messages)))


def _different(rng: random.Random, scene: Scene, count: int) -> list[Question]:
    """Up to `count` questions, none with an answer that was given before: what can be copied
    from the chat teaches nothing about pictures."""
    asked: list[Question] = []
    for _ in range(4 * count):
        one = question(rng, scene)
        told = " ".join(other.answer for other in asked).lower()
        if len(asked) < count and one.answer.lower().split()[-1] not in told.split():
            asked.append(one)
    return asked


def _answered(asked: Question, alone: bool) -> Message:
    if alone:
        return spoken((asked.answer, DECISION))
    if not asked.before:
        return spoken((asked.answer, DECISION / 2), (asked.after, _FRAME))
    # The space belongs to the token of the word that follows it.
    before, answer = asked.before.rstrip(), f" {asked.answer}"
    return spoken((before, _FRAME), (answer, DECISION), (asked.after, _FRAME))


def alike(rng: random.Random, lessons: list[Lesson], parts: int) -> list[int]:
    """The places of a part of the lessons that are about equally long: of their order by length,
    one of `parts` pieces."""
    order = sorted(range(len(lessons)), key=lambda place: len(lessons[place].ids))
    size = len(lessons) // parts
    start = size * rng.randrange(parts)
    return order[start : start + size]


def make_batch(lessons: list[Lesson], image: int, vocabulary: int) -> Batch:
    """One lesson a row, its picture the one of the same place."""
    length = -(-max(len(one.ids) for one in lessons) // 8) * 8
    inputs = np.zeros((len(lessons), length), dtype=np.int32)
    shares = np.zeros((len(lessons), length), dtype=np.float32)
    for row, one in enumerate(lessons):
        inputs[row, : len(one.ids)] = one.ids
        shares[row, : len(one.ids)] = one.weights
    targets = inputs.reshape(-1)
    asked = np.flatnonzero(shares.reshape(-1))
    wanted = targets[asked].copy()
    places = np.flatnonzero(inputs.reshape(-1) == image)
    targets[places] = vocabulary + np.arange(len(places))
    return Batch(
        mx.array(inputs),
        mx.array(asked - 1),
        mx.array(wanted),
        mx.array(shares.reshape(-1)[asked]),
    )
