"""SpeculativeDecodingEngine: with a draft model or with n-grams, the text is plain decoding's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.speculative_decoding import SpeculativeConfig, SpeculativeDecodingEngine
from mlx_parallm.utils import batch_generate, close, load

PROMPTS = ["The snake is", "3 + 4 =", "one two three one two three one two", "Hello"]


@pytest.fixture(scope="module")
def plain() -> list[str]:
    """What the bundled model says without guessing."""
    model, tokenizer = load("bundled")
    answers = batch_generate(model, tokenizer, PROMPTS, max_tokens=24)
    close(model)
    return answers


@pytest.fixture(params=["bundled/draft", None], ids=["draft model", "n-grams"])
def engine(request: pytest.FixtureRequest) -> Iterator[SpeculativeDecodingEngine]:
    config = SpeculativeConfig(
        target_model_path="bundled", draft_model_path=request.param, max_draft_tokens=5
    )
    made = SpeculativeDecodingEngine(config)
    yield made
    made.close()


def test_the_text_is_plain_decodings(engine: SpeculativeDecodingEngine, plain: list[str]) -> None:
    assert engine.generate_batch(PROMPTS, max_tokens=24) == plain
    for prompt, answer in zip(PROMPTS, plain, strict=True):
        result = engine.generate(prompt, max_tokens=24)
        assert result.text == answer
        assert 0 < len(result.token_ids) <= 24
        assert result.finish_reason in ("stop", "length")
        assert 0 <= result.acceptance_rate <= 1


def test_counts(engine: SpeculativeDecodingEngine) -> None:
    for _ in range(200):  # when guesses are made is decided by the clock
        engine.generate(PROMPTS[2], max_tokens=40, ignore_eos=True)
        stats = engine.get_stats()
        if stats["accepted"]:
            break
    assert stats["drafted"] >= stats["accepted"] > 0
    assert stats["acceptance_rate"] == pytest.approx(stats["accepted"] / stats["drafted"])
    assert stats["mean_accepted_length"] <= 6  # with the token that is sampled anyway


def test_a_draft_that_is_missing() -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        SpeculativeDecodingEngine(SpeculativeConfig("bundled", "./nowhere"))
