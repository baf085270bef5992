"""A chat with pictures can have all that a chat has, and says what mlx-vlm's own model says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

CHAT = "/v1/chat/completions"
TOLERANCE = 1e-4


def image(seed: int, size: tuple[int, int] = (60, 50)) -> Any:
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)


def turn(files: Any, *parts: Any) -> dict[str, Any]:
    """What a user says; an image becomes a picture."""

    def part(value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            return {"type": "text", "text": value}
        return {"type": "image_url", "image_url": {"url": files.url(files.encoded(value))}}

    return {"role": "user", "content": [part(value) for value in parts]}


@pytest.fixture
def conversation(files: Any) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "Be brief."},
        turn(files, "Here is ", image(1), " and "),
        {"role": "assistant", "content": "Yes?"},
        turn(files, image(2, (64, 40)), "there. What differs?"),
    ]


def test_the_oracle_says_the_same(seeing: Any, conversation: Any) -> None:
    from mlx_parallm.models.vision.picture import Picture
    from tests.models.vision import oracle

    answer = seeing.ok(
        CHAT,
        messages=conversation,
        max_tokens=8,
        temperature=0,
        logprobs=True,
        ignore_eos=True,
        return_tokens_as_token_ids=True,
    )
    found = answer["choices"][0]["logprobs"]["content"]
    text = (
        "system: Be brief.\nuser: Here is <image> and \nassistant: Yes?\n"
        "user: <image>there. What differs?\nassistant:"
    )
    pictures = [Picture(np.array(one)) for one in (image(1), image(2, (64, 40)))]
    processor = seeing.engine.loaded.vision._processor
    expected = oracle.answer("idefics3", processor, text, pictures, 8)
    assert answer["usage"]["prompt_tokens"] == len(expected.ids)
    assert [int(one["token"].removeprefix("token_id:")) for one in found] == expected.tokens
    apart = np.abs(np.array([one["logprob"] for one in found]) - expected.logprobs)
    assert apart.max() < TOLERANCE


def test_streams_choices_seeds_and_logprobs(seeing: Any, conversation: Any) -> None:
    body = {
        "messages": conversation,
        "max_tokens": 6,
        "n": 2,
        "seed": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "repetition_penalty": 1.2,
    }
    whole = seeing.ok(CHAT, **body)
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    streamed = ["", ""]
    for event in seeing.events(CHAT, **body):
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == texts
    assert texts[0] != texts[1]
    assert all(len(one["top_logprobs"]) == 2 for one in whole["choices"][0]["logprobs"]["content"])


def test_answers_about_pictures_keep_to_a_grammar(seeing: Any, conversation: Any) -> None:
    # The tokenizer's thinking marker could come first: it is barred.
    marker = seeing.engine.loaded.tokenizer.convert_tokens_to_ids("[THINK]")
    barred = {"logit_bias": {str(marker): -100}, "temperature": 0}
    either = {"choice": ["red as a rose", "blue as the sea"]}
    answer = seeing.ok(
        CHAT, messages=conversation, max_tokens=40, structured_outputs=either, **barred
    )
    assert answer["choices"][0]["message"]["content"] in either["choice"]


def test_a_picture_that_was_seen_is_cached(seeing: Any, files: Any) -> None:
    def cached(seed: int) -> int:
        messages = [turn(files, "Look at this once more, and closely: ", image(seed), "What?")]
        usage = seeing.ok(CHAT, messages=messages, max_tokens=2)["usage"]
        assert usage["prompt_tokens"] > 50
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached(50) < 32
    assert cached(50) >= 48
    assert cached(51) < 32, "the text before it is shared, and no other picture"


def test_pictures_count_for_the_context(seeing: Any, files: Any) -> None:
    pictures = [image(seed) for seed in range(4)]
    counted = seeing.ok("/tokenize", messages=[turn(files, *pictures)])
    limit = counted["max_model_len"]
    response = seeing.post(
        CHAT, messages=[turn(files, *pictures)], max_tokens=limit - counted["count"] + 1
    )
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert str(limit) in error["message"]


def test_cards_say_that_it_sees(seeing: Any) -> None:
    card = seeing.http.get("/v1/models").json()["data"][0]
    assert card["capabilities"] == {"vision": True, "video": True}
    assert "vision" in seeing.ok("/api/show", model="tiny")["capabilities"]


def test_a_model_that_reads_text_refuses_pictures(server: Any, files: Any) -> None:
    response = server.post(CHAT, messages=[turn(files, image(1), "What?")])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].startswith("messages")
    assert "does not see pictures" in error["message"]
