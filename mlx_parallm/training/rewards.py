"""Rewards: what makes an answer a good one, as a number.

A reward is `FILE.py:FUNCTION`, or one of those below, some with an argument:

    exact_match[:FIELD]     1 where the answer is the line's FIELD ("answer"), without outer space
    contains[:FIELD]        1 where that field is in the answer
    regex:PATTERN           1 where the pattern is found in the answer (Python's)
    json_schema[:FIELD]     1 where the answer is JSON that is valid under the line's FIELD
                            ("schema"), or under the schema in a file of that name
    length:TOKENS           1 for answers up to so many tokens, less the longer they are

A function is called as TRL calls it, with lists that are as long as there are answers:
`reward(prompts, completions, completion_ids, **fields)`, where it may leave out what it does
not want. It returns a number for each.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_parallm.errors import TrainingError

Scores = Sequence[float]
RewardFunction = Callable[..., Scores]


@dataclass(frozen=True)
class Reward:
    """A reward by the name that logs show."""

    name: str
    function: RewardFunction

    def score(self, columns: Mapping[str, list[Any]]) -> np.ndarray:
        """(N,) float64 of N answers.

        Args:
            columns: prompts, completions, completion_ids and the lines' fields.

        Raises:
            TrainingError: it failed, or did not return a finite number for each.
        """
        try:
            found = list(self.function(**_wanted(self.function, columns)))
            scores = np.array([float(score) for score in found])
        except TrainingError:
            raise
        except Exception as error:
            raise TrainingError(f"the reward {self.name} failed: {error!r}") from error
        if len(scores) != len(columns["completions"]) or not np.isfinite(scores).all():
            raise TrainingError(
                f"the reward {self.name} must give a finite number for each of the "
                f"{len(columns['completions'])} answers; it gave {found!r:.200}"
            )
        return scores


def load_reward(spec: str) -> Reward:
    """The reward that an option names.

    Raises:
        TrainingError: there is no such reward, or its file cannot be used.
    """
    name, _, argument = spec.partition(":")
    if name.endswith(".py"):
        return Reward(argument, _from_file(Path(name).expanduser(), argument))
    if name not in _BUILT_IN:
        raise TrainingError(
            f"{spec}: there is no such reward; there are {', '.join(_BUILT_IN)} "
            "and FILE.py:FUNCTION.",
            param="reward",
        )
    return Reward(name, _BUILT_IN[name](argument))


def _from_file(file: Path, name: str) -> RewardFunction:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise TrainingError(f"{file}: there is no such file.", param="reward")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TrainingError(f"{file}: {error!r}", param="reward") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise TrainingError(f"{file}: there is no function {name!r} in it.", param="reward")
    found: RewardFunction = function
    return found


def _wanted(function: RewardFunction, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(columns)
    return {name: values for name, values in columns.items() if name in parameters}


def _of_field(name: str, columns: Mapping[str, list[Any]]) -> list[Any]:
    if name not in columns or None in columns[name]:
        raise TrainingError(f"a reward needs the field {name!r} in every line of the data.")
    return columns[name]


def _exact_match(argument: str) -> RewardFunction:
    def exact_match(completions: list[str], **columns: list[Any]) -> Scores:
        answers = _of_field(argument or "answer", columns)
        pairs = zip(completions, answers, strict=True)
        return [float(text.strip() == str(answer).strip()) for text, answer in pairs]

    return exact_match


def _contains(argument: str) -> RewardFunction:
    def contains(completions: list[str], **columns: list[Any]) -> Scores:
        answers = _of_field(argument or "answer", columns)
        return [float(str(a) in text) for text, a in zip(completions, answers, strict=True)]

    return contains


def _regex(argument: str) -> RewardFunction:
    try:
        pattern = re.compile(argument, re.DOTALL)
    except re.error as error:
        raise TrainingError(f"regex:{argument}: {error}", param="reward") from None
    return lambda completions: [float(bool(pattern.search(text))) for text in completions]


def _json_schema(argument: str) -> RewardFunction:
    try:
        from jsonschema_rs import validator_for
    except ImportError:
        raise TrainingError(
            'json_schema needs a validator: pip install "mlx_parallm[train]"', param="reward"
        ) from None
    fixed = None
    if argument.endswith(".json"):
        try:
            fixed = validator_for(json.loads(Path(argument).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise TrainingError(f"json_schema:{argument}: {error}", param="reward") from None

    def json_schema(completions: list[str], **columns: list[Any]) -> Scores:
        if fixed is not None:
            return [_is_valid(text, fixed) for text in completions]
        schemas = _of_field(argument or "schema", columns)
        pairs = zip(completions, schemas, strict=True)
        return [_is_valid(text, validator_for(schema)) for text, schema in pairs]

    return json_schema


def _is_valid(text: str, validator: Any) -> float:
    try:
        return float(validator.is_valid(json.loads(text)))
    except ValueError:
        return 0.0


def _length(argument: str) -> RewardFunction:
    if not argument.isdigit() or int(argument) < 1:
        raise TrainingError(f"length:{argument}: a number of tokens is needed.", param="reward")
    most = int(argument)
    return lambda completion_ids: [min(1.0, most / max(1, len(ids))) for ids in completion_ids]


_BUILT_IN: dict[str, Callable[[str], RewardFunction]] = {
    "exact_match": _exact_match,
    "contains": _contains,
    "regex": _regex,
    "json_schema": _json_schema,
    "length": _length,
}


def total(scores: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """(N,) sum of rewards by their weights; no weights are 1 each."""
    shares = weights or [1.0] * len(scores)
    assert all(map(math.isfinite, shares))
    return np.asarray(sum(w * s for w, s in zip(shares, scores, strict=True)))
