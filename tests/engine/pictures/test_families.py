"""Every family says about pictures what mlx-vlm's own model says: prompts and answers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mlx_vlm")

from mlx_parallm.engine.engine import Engine
from tests.engine.driver import Driver
from tests.engine.pictures.seeing import (
    PICTURE,
    sequence_of,
    vision_of,
    with_placeholders,
)
from tests.models.vision import oracle
from tests.models.vision.tiny_vision import SPECS, picture

TOLERANCE = 1e-4
TEXT = f"user: Here is {PICTURE} and there {PICTURE}\nWhat differs?\nassistant:"

pytestmark = pytest.mark.usefixtures("no_compile")


@pytest.fixture(scope="module", params=sorted(SPECS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_prompts_and_answers_are_the_oracles(engine: Engine, family: str) -> None:
    pictures = [picture(1), picture(2, 40, 64)]
    driver = Driver(engine)
    scored = {"ignore_eos": True, "logprobs": 0, "prompt_logprobs": 0}
    sequence = sequence_of(engine, family, TEXT, pictures, **scored)
    driver.run(sequence)
    processor = vision_of(engine)._processor
    expected = oracle.answer(family, processor, with_placeholders(family, TEXT), pictures, 8)
    assert sequence.prompt == expected.ids
    scores = driver.prompt_logprobs(sequence)
    assert scores is not None
    found = [score.logprob for score in scores if score is not None]
    assert np.abs(np.array(found) - expected.scores).max() < TOLERANCE
    assert driver.tokens(sequence) == expected.tokens
    said = [score.logprob for score in driver.logprobs(sequence)]
    assert np.abs(np.array(said) - expected.logprobs).max() < TOLERANCE


def test_another_picture_gets_another_answer(engine: Engine, family: str) -> None:
    """Or all of these tests would hold for a model that does not look."""
    text = f"user: {PICTURE} What?\nassistant:"
    said = []
    for seed in range(3):
        driver = Driver(engine)
        sequence = sequence_of(engine, family, text, [picture(seed)], logprobs=0)
        driver.run(sequence)
        said.append([score.logprob for score in driver.logprobs(sequence)])
    assert said[0] != said[1] != said[2] != said[0]
