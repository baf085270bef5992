"""/v1/systemone: its questions as ours, and our decisions as its answers."""

from __future__ import annotations

import time
import uuid
from typing import Any, assert_never

from mlx_parallm.server.decisions.confidence import mean_level, shown
from mlx_parallm.server.decisions.question import Option, Question, as_text
from mlx_parallm.server.decisions.told import Decision
from mlx_parallm.server.schemas.decisions import (
    NoulQuestion,
    SystemOneChoice,
    SystemOneQuestion,
    SystemOneRequest,
    SystemOneScore,
)


def questions_of(body: SystemOneRequest) -> list[Question]:
    """The questions, in order."""
    return [_question(asked, f"questions.{key}") for key, asked in body.questions.items()]


def response(
    body: SystemOneRequest, model: str, decisions: list[Decision], usage: dict[str, Any]
) -> dict[str, Any]:
    """The whole answer."""
    pairs = dict(zip(body.questions, decisions, strict=True))
    return {
        "id": f"systemone-{uuid.uuid4().hex}",
        "object": "structured_decision",
        "created": int(time.time()),
        "model": model,
        "answers": {
            key: {"type": asked.type, **_answer(asked, pairs[key])}
            for key, asked in body.questions.items()
        },
        "usage": usage,
        "diagnostics": {
            key: {
                "label_mass": shown(decision.label_mass),
                "argmax_is_label": decision.argmax_is_label,
            }
            for key, decision in pairs.items()
        },
    }


def _question(asked: SystemOneQuestion, param: str) -> Question:
    instructions = as_text(asked.instructions)
    if isinstance(asked, NoulQuestion):
        given = asked.criteria
        meanings = (None, None) if given is None else (given.true, given.false)
        yes, no = (_meaning(value) for value in meanings)
        return Question(param, "yes_no", instructions, (Option("yes", yes), Option("no", no)))
    if isinstance(asked, SystemOneChoice):
        options = [Option(name, _meaning(value)) for name, value in asked.criteria.items()]
        return Question(f"{param}.criteria", "choice", instructions, tuple(options), asked.read)
    if isinstance(asked, SystemOneScore):
        options = [Option(as_text(level)) for level in asked.criteria]
        return Question(f"{param}.criteria", "score", instructions, tuple(options))
    assert_never(asked)


def _meaning(value: Any) -> str:
    return "" if value is None else as_text(value)


def _answer(asked: SystemOneQuestion, decision: Decision) -> dict[str, Any]:
    found = decision.probabilities
    # As vLLM has it: how likely the reply is the option that is told.
    sure = shown(max(found) * decision.label_mass)
    if isinstance(asked, NoulQuestion):
        both = {"yes": shown(found[0]), "no": shown(found[1])}
        return {"noul": both["yes"], "probabilities": both, "confidence": sure}
    if isinstance(asked, SystemOneChoice):
        names = list(asked.criteria)
        return {
            "choice": names[found.index(max(found))],
            "probabilities": {name: shown(p) for name, p in zip(names, found, strict=True)},
            "confidence": sure,
        }
    if isinstance(asked, SystemOneScore):
        return {
            "score": shown(mean_level(found)),
            "probabilities": {str(place): shown(p) for place, p in enumerate(found)},
            "legend": {str(place): level for place, level in enumerate(asked.criteria)},
            "confidence": sure,
        }
    assert_never(asked)
