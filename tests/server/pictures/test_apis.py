"""One picture through every API: the same tokens reach the model, and errors name the place."""

from __future__ import annotations

import base64
from typing import Any

import pytest

QUESTION = "What is it?"
CHAT = "/v1/chat/completions"


def shown(url: str, **more: Any) -> list[dict[str, Any]]:
    parts = [
        {"type": "image_url", "image_url": {"url": url, **more}},
        {"type": "text", "text": QUESTION},
    ]
    return [{"role": "user", "content": parts}]


def asked(server: Any, url: str, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = server.ok(
        CHAT, messages=shown(url), max_tokens=6, temperature=0, logprobs=True, **more
    )
    return answer


def test_a_picture_is_counted_and_seen(seeing: Any, files: Any) -> None:
    first, second = (asked(seeing, files.url(data)) for data in (files.plain(), files.noisy()))
    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]
    told = [answer["choices"][0]["logprobs"]["content"][0] for answer in (first, second)]
    assert told[0] != told[1]
    counted = seeing.ok("/tokenize", messages=shown(files.url(files.plain())))["count"]
    assert counted == first["usage"]["prompt_tokens"]
    without = seeing.ok("/tokenize", messages=[{"role": "user", "content": QUESTION}])["count"]
    assert counted > without + 4


def test_all_apis_say_the_same(seeing: Any, files: Any) -> None:
    data = files.noisy()
    url, plain = files.url(data), base64.b64encode(data).decode()
    expected = asked(seeing, url)
    text, length = expected["choices"][0]["message"]["content"], expected["usage"]["prompt_tokens"]

    source = {"type": "base64", "media_type": "image/png", "data": plain}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": blocks}]
    said = seeing.ok("/v1/messages", messages=messages, max_tokens=6, temperature=0)
    assert said["content"][0]["text"] == text
    assert seeing.ok("/v1/messages/count_tokens", messages=messages)["input_tokens"] == length

    parts = [
        {"type": "input_image", "image_url": url},
        {"type": "input_text", "text": QUESTION},
    ]
    body = {"input": [{"role": "user", "content": parts}], "max_output_tokens": 6}
    said = seeing.ok("/v1/responses", **body, temperature=0)
    assert said["output"][0]["content"][0]["text"] == text
    assert said["usage"]["input_tokens"] == length
    # What was stored is shown to the next response.
    later = seeing.ok(
        "/v1/responses", input="And now?", previous_response_id=said["id"], max_output_tokens=2
    )
    assert later["usage"]["input_tokens"] > length
    items = seeing.http.get(f"/v1/responses/{said['id']}/input_items").json()["data"]
    assert items[0]["content"] == parts

    turn = {"role": "user", "content": QUESTION, "images": [plain]}
    options = {"temperature": 0, "num_predict": 6}
    said = seeing.ok("/api/chat", model="tiny", messages=[turn], options=options, stream=False)
    assert said["message"]["content"] == text
    said = seeing.ok(
        "/api/generate",
        model="tiny",
        prompt=QUESTION,
        images=[plain],
        options=options,
        stream=False,
    )
    assert said["response"] == text


def test_decisions_look_at_pictures(seeing: Any, files: Any) -> None:
    question = {"type": "predicate", "instructions": "Is it red?"}
    first, second = (
        seeing.ok("/v1/decisions", input=QUESTION, images=[url], questions=[question])
        for url in (files.url(files.plain()), base64.b64encode(files.noisy()).decode())
    )
    assert first["usage"]["input_tokens"] == second["usage"]["input_tokens"]
    assert first["answers"][0]["probability"] != second["answers"][0]["probability"]
    typed = {"red": {"type": "choice", "instructions": "?", "criteria": {"a": None, "b": None}}}
    seeing.ok("/v1/systemone", state=QUESTION, images=[files.url(files.plain())], questions=typed)


def test_two_pictures_and_a_literal_placeholder(seeing: Any, files: Any) -> None:
    url = files.url(files.plain())
    parts = [
        {"type": "text", "text": "<image> is a word here."},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": files.url(files.noisy()), "detail": "low"}},
    ]
    messages = [{"role": "user", "content": parts}]
    one = seeing.ok("/tokenize", messages=[{"role": "user", "content": parts[:2]}])
    two = seeing.ok("/tokenize", messages=messages)
    picture = one["tokens"].count(max(one["tokens"], key=one["tokens"].count))
    assert picture
    assert two["count"] > one["count"] + 4
    answer = seeing.ok(CHAT, messages=messages, max_tokens=2, n=2, stream=False)
    assert len(answer["choices"]) == 2


def test_beside_others_each_has_its_own_picture(seeing: Any, files: Any) -> None:
    urls = [files.url(files.noisy(size=(8 + i, 9))) for i in range(4)]
    alone = [asked(seeing, url)["choices"][0]["message"]["content"] for url in urls]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda url: asked(seeing, url), urls))
    assert [answer["choices"][0]["message"]["content"] for answer in together] == alone


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (CHAT, {"messages": shown("data:,")}, "messages.0.content.0.image_url"),
        (
            CHAT,
            {"messages": shown("data:,", detail="fine")},
            "messages.0.content.0.image_url.detail",
        ),
        ("/tokenize", {"messages": shown("data:,")}, "messages.0.content.0.image_url"),
        (
            "/v1/responses",
            {
                "input": [
                    {"role": "user", "content": "Hi"},
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
                ]
            },
            "input.1.content.0.image_url",
        ),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0.image_url",
        ),
        ("/v1/decisions", {"input": "?", "images": ["data:,"], "questions": []}, "questions"),
        (
            "/v1/decisions",
            {
                "input": "?",
                "images": ["data:,"],
                "questions": [{"type": "predicate", "instructions": "?"}],
            },
            "images.0",
        ),
    ],
)
def test_errors_name_the_place(seeing: Any, path: str, body: dict[str, Any], place: str) -> None:
    response = seeing.post(path, **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == place


def test_errors_in_the_envelopes_of_other_apis(seeing: Any) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "!"}
    blocks = [{"type": "text", "text": "?"}, {"type": "image", "source": source}]
    messages = [{"role": "user", "content": blocks}]
    answer = seeing.post("/v1/messages", messages=messages, max_tokens=2)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "'messages.0.content.1.source': The picture is no valid base64" in answer.text
    turn = {"role": "user", "content": "?", "images": ["!"]}
    answer = seeing.post("/api/chat", model="tiny", messages=[turn])
    assert answer.status_code == 400
    assert "'messages.0.images.0': The picture is no valid base64" in answer.json()["error"]


def test_where_there_is_no_place_for_pictures(seeing: Any, files: Any) -> None:
    url = files.url(files.plain())
    for path, body in (
        (CHAT, {"messages": shown(url), "truncate_prompt_tokens": 5}),
        (CHAT, {"messages": shown(url), "continue_final_message": True}),
        ("/v1/rl/rollout", {"messages": shown(url)}),
        ("/api/generate", {"prompt": "x", "raw": True, "images": ["aGk="]}),
    ):
        response = seeing.post(path, model="tiny", **body)
        assert response.status_code == 400, response.text
