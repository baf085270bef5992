"""/v1/decisions: its questions as ours, and our decisions as its answers."""

from __future__ import annotations

from typing import Any, assert_never

from mlx_parallm.server.decisions import confidence
from mlx_parallm.server.decisions.confidence import shown
from mlx_parallm.server.decisions.question import Option, Question, as_text
from mlx_parallm.server.decisions.told import Decision
from mlx_parallm.server.schemas.decisions import (
    ChoiceQuestion,
    DecisionQuestion,
    DecisionsRequest,
    PredicateQuestion,
    ScoreQuestion,
)

_YES_NO = (Option("yes"), Option("no"))


def state_of(body: DecisionsRequest) -> str:
    """What is asked about, as one text."""
    if isinstance(body.input, str):
        return body.input
    return "\n\n".join(message.text for message in body.input)


def questions_of(body: DecisionsRequest) -> list[Question]:
    """The questions, in order."""
    return [_question(asked, place) for place, asked in enumerate(body.questions)]


def answers_of(body: DecisionsRequest, decisions: list[Decision]) -> list[dict[str, Any]]:
    """The answers, in order."""
    pairs = zip(body.questions, decisions, strict=True)
    return [
        {"type": asked.type, "name": asked.name, **_answer(asked, decision.probabilities)}
        for asked, decision in pairs
    ]


def _question(asked: DecisionQuestion, place: int) -> Question:
    param = f"questions.{place}"
    if isinstance(asked, PredicateQuestion):
        return Question(param, "yes_no", asked.instructions, _YES_NO)
    if isinstance(asked, ChoiceQuestion):
        options = [Option(as_text(one.value), one.description) for one in asked.choices]
        return Question(
            f"{param}.choices", "choice", asked.instructions, tuple(options), asked.read
        )
    if isinstance(asked, ScoreQuestion):
        options = [Option(one.label, one.description) for one in asked.levels]
        return Question(f"{param}.levels", "score", asked.instructions, tuple(options), asked.read)
    assert_never(asked)


def _answer(asked: DecisionQuestion, found: tuple[float, ...]) -> dict[str, Any]:
    if isinstance(asked, PredicateQuestion):
        return {"probability": shown(found[0])}
    if isinstance(asked, ChoiceQuestion):
        values = [choice.value for choice in asked.choices]
        return {
            "choice": values[found.index(max(found))],
            "probabilities": [
                {"value": value, "probability": shown(p)}
                for value, p in zip(values, found, strict=True)
            ],
            "confidence": shown(confidence.of_choice(found)),
        }
    if isinstance(asked, ScoreQuestion):
        return {
            "score": shown(confidence.mean_level(found)),
            "probabilities": [
                {"value": place, "label": level.label, "probability": shown(p)}
                for place, (level, p) in enumerate(zip(asked.levels, found, strict=True))
            ],
            "confidence": shown(confidence.of_score(found)),
        }
    assert_never(asked)
