"""Videos in chats: lists of frames and files, sampled, counted, cached, beside other things."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mlx_parallm.server.input.videos import containers
from mlx_parallm.server.input.videos.containers import VideoFile
from mlx_parallm.server.input.videos.sampling import Sampling, VideoLimits
from tests.server.videos.conftest import served

Image, ImageDraw = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageDraw")
CHAT = "/v1/chat/completions"
GREYS = (10, 60, 110, 160, 210)
WHAT = "What happens?"


def asked(server: Any, messages: Any, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = server.ok(
        CHAT, messages=messages, max_tokens=6, temperature=0, logprobs=True, **more
    )
    return answer


def said(answer: dict[str, Any]) -> list[float]:
    return [one["logprob"] for one in answer["choices"][0]["logprobs"]["content"]]


def shown_text(server: Any, messages: Any, **more: Any) -> str:
    """What the model is given."""
    found = server.ok("/tokenize", messages=messages, **more)
    return str(server.ok("/detokenize", tokens=found["tokens"])["prompt"])


def seconds(text: str) -> list[float]:
    """Times that Qwen3-VL's processor writes before groups of two frames."""
    return [float(part.split("<")[-1]) for part in text.split(" seconds>")[:-1]]


def test_all_ways_of_a_list_of_frames_are_one(watching: Any, clips: Any) -> None:
    frames = [clips.picture(grey) for grey in GREYS]
    plain = [base64.b64encode(frame).decode() for frame in frames]
    urls = [clips.url(frame, "image/png") for frame in frames]
    ways = ("data:video/jpeg;base64," + ",".join(plain), urls, plain)
    answers = [asked(watching, clips.chat(clips.part(way), WHAT)) for way in ways]
    assert len({answer["usage"]["prompt_tokens"] for answer in answers}) == 1
    for answer in answers[1:]:
        assert np.abs(np.array(said(answer)) - said(answers[0])).max() < 1e-4
    text = shown_text(watching, clips.chat(clips.part(urls), WHAT))
    assert seconds(text) == [0.5, 2.5, 4.0], "one frame a second, in groups of two"
    turned = asked(watching, clips.chat(clips.part(urls[::-1]), WHAT))
    assert np.abs(np.array(said(turned)) - said(answers[0])).max() > 1e-3


@pytest.mark.parametrize("kind", ["mp4", "webm", "mov"])
def test_frames_of_files_are_those_that_were_filmed(watching: Any, clips: Any, kind: str) -> None:
    greys = [5 * number for number in range(48)]
    data = clips.file(greys, kind, fps=12)
    video = VideoFile(data, VideoLimits(), 10**6, "here").shown(Sampling(num_frames=4))
    for frame, place in zip(video.frames, (0, 16, 31, 47), strict=True):
        apart = frame.pixels.astype(int) - clips.pixels(greys[place])
        assert np.abs(apart.mean(axis=(0, 1))).max() < 3, "as near as the codec comes"
    assert video.times == pytest.approx((0, 16 / 12, 31 / 12, 47 / 12), abs=1e-3)
    assert video.duration == pytest.approx(4, abs=1e-3)
    film = clips.url(data, "video/quicktime" if kind == "mov" else f"video/{kind}")
    some = {"media_io_kwargs": {"video": {"num_frames": 4}}}
    assert seconds(shown_text(watching, clips.chat(film, WHAT), **some)) == [0.7, 3.2]
    asked(watching, clips.chat(film, WHAT), **some)


def test_which_frames_are_shown(watching: Any, clips: Any) -> None:
    film = clips.url(clips.file(range(0, 240, 4), fps=10))  # 60 frames, 6 seconds

    def groups(**video: Any) -> int:
        text = shown_text(watching, clips.chat(film), media_io_kwargs={"video": video})
        return len(seconds(text))

    assert groups() == 16, "32 frames"
    assert groups(fps=2) == 6
    assert groups(fps=2, num_frames=4) == 2
    assert groups(num_frames=40) == 20
    assert groups(num_frames=1) == 1
    for video, place in (
        ({"num_frames": -1}, "messages.0.content.0.video_url"),
        ({"num_frames": 41}, "messages.0.content.0.video_url"),
        ({"fps": 9}, "messages.0.content.0.video_url"),
        ({"num_frames": 0}, "media_io_kwargs.video.num_frames"),
        ({"fps": 0}, "media_io_kwargs.video.fps"),
        ({"fps": -1}, "media_io_kwargs.video.fps"),
        ({"frames": 3}, "media_io_kwargs.video.frames"),
    ):
        response = watching.post(
            CHAT, messages=clips.chat(film), media_io_kwargs={"video": video}, max_tokens=1
        )
        assert response.status_code == 400, video
        assert response.json()["error"]["param"] == place


def test_a_video_is_counted_and_cached(watching: Any, clips: Any) -> None:
    def usage(greys: list[int]) -> tuple[int, int]:
        messages = clips.chat("Look at this closely, all of it: ", clips.frames(greys), WHAT)
        found = watching.ok(CHAT, messages=messages, max_tokens=2)["usage"]
        counted = watching.ok("/tokenize", messages=messages)["count"]
        assert counted == found["prompt_tokens"]
        return found["prompt_tokens"], found["prompt_tokens_details"]["cached_tokens"]

    length, cached = usage([1, 2, 3, 4, 5, 6])
    assert length > 60
    assert cached < 16
    encoder = watching.engine.runner.encoder
    before = encoder.encoded
    assert usage([1, 2, 3, 4, 5, 6])[1] >= 48
    assert encoder.encoded == before
    assert usage([1, 2, 3, 4, 5, 7])[1] >= 16, "the first groups are the same"
    assert encoder.encoded == before + 1, "and only the last one is new"


def test_videos_count_for_the_context(watching: Any, clips: Any) -> None:
    messages = clips.chat(clips.frames(GREYS), clips.frames(GREYS))
    counted = watching.ok("/tokenize", messages=messages)
    limit = counted["max_model_len"]
    response = watching.post(CHAT, messages=messages, max_tokens=limit - counted["count"] + 1)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_videos_and_pictures_beside_each_other(watching: Any, clips: Any) -> None:
    """Streamed and together, each says what it says alone."""
    image = {"type": "image_url", "image_url": {"url": clips.url(clips.picture(90), "image/png")}}
    film = clips.url(clips.file(range(20, 220, 10)))
    chats = [
        clips.chat(image, "then", film, WHAT),
        clips.chat(film, clips.frames(GREYS), image),
        clips.chat("<|video_pad|> is a word here. ", clips.frames(GREYS[::-1])),
        clips.chat("Hello"),
    ]
    alone = [asked(watching, messages)["choices"][0]["message"]["content"] for messages in chats]

    def streamed(messages: Any) -> str:
        body = {"messages": messages, "max_tokens": 6, "temperature": 0}
        deltas = [event["choices"][0]["delta"] for event in watching.events(CHAT, **body)]
        return "".join(delta.get("content") or "" for delta in deltas)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(streamed, chats)) == alone


def test_phones_write_down_how_to_turn_a_video(clips: Any) -> None:
    upright = clips.file([200] * 3)
    one = (1 << 16).to_bytes(4, "big")
    matrix = one + bytes(12) + one
    assert upright.count(matrix) == 2, "of the film, and of its track"
    film, _, rest = upright.partition(matrix)
    quarter = bytes(4) + one + bytes(4) + (2**32 - (1 << 16)).to_bytes(4, "big") + bytes(4)
    turned = film + matrix + rest.replace(matrix, quarter)
    before, after = (
        VideoFile(data, VideoLimits(), 10**6, "here").shown(Sampling()).frames[0].pixels
        for data in (upright, turned)
    )
    assert before.shape == (56, 84, 3)
    assert after.shape == (84, 56, 3)
    assert np.abs(np.rot90(before, -1).astype(int) - after).max() < 3, "clockwise"


def test_models_that_take_no_videos_say_so(helpers: Any, clips: Any, server: Any) -> None:
    messages = clips.chat(clips.frames(GREYS), WHAT)
    seeing = served(helpers, "gemma3")
    try:
        for one, told in ((seeing, "gemma3 models take no videos"), (server, "does not see")):
            response = one.post(CHAT, messages=messages, max_tokens=1)
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert error["param"] == "messages.0.content.0.video_url"
            assert told in error["message"]
    finally:
        seeing.stop()
        seeing.join()


def test_the_bundled_model_sees_what_is_in_all_frames(helpers: Any, clips: Any) -> None:
    def circle(x: int, colour: tuple[int, int, int]) -> str:
        frame, file = Image.new("RGB", (96, 96), "white"), io.BytesIO()
        ImageDraw.Draw(frame).ellipse((x, 30, x + 36, 66), fill=colour)
        frame.save(file, format="PNG")
        return str(clips.url(file.getvalue(), "image/png"))

    seeing = served(helpers, "bundled/vision")
    try:
        for name, colour in (("red", (215, 30, 35)), ("blue", (40, 70, 210))):
            frames = clips.part([circle(x, colour) for x in (8, 24, 40, 56)])
            answer = asked(seeing, clips.chat(frames, "What colour is the circle?"))
            assert answer["choices"][0]["message"]["content"] == f"It is {name}."
    finally:
        seeing.stop()
        seeing.join()


def test_other_apis_have_no_videos(watching: Any, clips: Any) -> None:
    film = clips.frames(GREYS)
    for path, body in (
        (
            "/v1/messages",
            {
                "messages": [{"role": "user", "content": [{"type": "video", "source": film}]}],
                "max_tokens": 1,
            },
        ),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_video", "video_url": film}]}]},
        ),
        ("/v1/rl/rollout", {"messages": clips.chat(film)}),
        (CHAT, {"messages": clips.chat(film), "truncate_prompt_tokens": 5}),
    ):
        response = watching.post(path, model="tiny", **body)
        assert response.status_code == 400, (path, response.text)


def test_without_the_extra_files_are_refused_and_frames_are_not(
    watching: Any, clips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = clips.url(clips.file([1, 2, 3]))
    monkeypatch.setattr(containers, "find_spec", lambda name: None)
    response = watching.post(CHAT, messages=clips.chat(film), max_tokens=1)
    assert response.status_code == 400
    assert "mlx_parallm[video]" in response.json()["error"]["message"]
    asked(watching, clips.chat(clips.frames(GREYS)))
