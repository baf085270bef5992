"""Pictures and videos over ranks: every rank has the tower, and computes the same features."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.ranks.servers import PIPELINE, Request, assert_same, ends_cleanly, serving
from tests.server.pictures.conftest import Files
from tests.server.videos.conftest import Clips


def picture(files: Files, number: int) -> dict[str, Any]:
    url = files.url(files.noisy(size=(40 + number, 30)))
    return {"type": "image_url", "image_url": {"url": url}}


def shown(part: dict[str, Any], number: int) -> Request:
    content = [
        {"type": "text", "text": f"Number {number}: "},
        part,
        {"type": "text", "text": " What is this?"},
    ]
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 6,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 2,
    }
    return "/v1/chat/completions", body


def test_two_ranks_see_as_one_process_does() -> None:
    pytest.importorskip("mlx_vlm")
    from tests.models.vision.tiny_vision import folder_of

    files, model = Files(), str(folder_of("idefics3"))
    clips = Clips()
    asked = [
        *(shown(picture(files, number), number) for number in (1, 2, 1)),
        shown(clips.part(clips.frames([20, 90, 200])), 3),
        ("/v1/completions", {"prompt": "a"}),
    ]
    asked[1][1].update(n=2, temperature=0.9, seed=4)
    asked[4][1].update(temperature=0, max_tokens=4, logprobs=1)
    with serving("--model", model) as server:
        alone = server.ask_all(asked)
    with serving("--model", model, ranks=2) as server:
        for _ in range(2):  # the second time from prefixes and kept features
            assert_same(alone, server.ask_all(asked))
        assert server.http.get("/debug/metrics").json()["engine"]["prefix_hit_tokens"] > 0
        ends_cleanly(server)


def test_a_pipeline_refuses_pictures_and_answers_texts() -> None:
    pytest.importorskip("mlx_vlm")
    from tests.models.vision.tiny_vision import folder_of

    path, body = shown(picture(Files(), 1), 1)
    with serving("--model", str(folder_of("idefics3")), ranks=2, way=PIPELINE) as server:
        refused = server.http.post(path, json=body)
        assert refused.status_code == 400
        message = refused.json()["error"]["message"]
        assert "Pictures are not supported with --pipeline-parallel" in message
        assert server.ask(("/v1/completions", {"prompt": "a", "max_tokens": 2}))["choices"]
