"""/v1/audio with OpenAI's SDK, against the engine's own transcripts; streams beside it go on."""

from __future__ import annotations

import logging
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.models.audio.tiny_whisper import melody
from tests.server.conftest import parse_events
from tests.waiting import PATIENCE_S, wait_until

MODEL = "whisper-1"
PATH = "/v1/audio/transcriptions"
_COUNTERS = ("transcriptions", "transcribed_seconds")
# One attempt a window, with little left to chance.
CALM = {"temperature": 0.05}


@pytest.fixture(scope="module")
def sdk(hearing: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{hearing.url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0
    )


def transcribe(sdk: openai.OpenAI, file: bytes, **more: Any) -> Any:
    return sdk.audio.transcriptions.create(
        model=MODEL, file=("sound.wav", file), **(CALM | {"language": "en"} | more)
    )


def text_alone(hearing: Any, samples: np.ndarray, *, language: str = "en") -> str:
    """What the engine says of a sound, without a server's way to it."""
    from mlx_parallm.engine.audio.transcriber import Transcriber
    from mlx_parallm.engine.audio.transcription import Transcription, Wish
    from mlx_parallm.models.audio.log_mel import log_mel

    def work() -> str:
        found: list[Any] = []
        whisper = hearing.engine.loaded.whisper
        wish = Wish(language=language, temperatures=(0.05,), seed=7)
        transcriber = Transcriber()
        transcriber.add(
            Transcription(whisper, log_mel(samples, 80), wish, found.extend, lambda _: None)
        )
        while transcriber.has_work:
            transcriber.work(0)
        return "".join(segment.text for segment in found).strip()

    text: str = hearing.engine.call(work).result(PATIENCE_S)
    return text


def test_every_format_says_the_same(hearing: Any, sdk: openai.OpenAI, sounds: Any) -> None:
    samples = melody(5.0)
    read = np.frombuffer(sounds.wav(samples)[44:], "<i2").astype(np.float32) / 32768
    expected = text_alone(hearing, read)
    found = {
        how: transcribe(sdk, sounds.wav(samples), response_format=how, extra_body={"seed": 7})
        for how in ("json", "text", "srt", "vtt", "verbose_json")
    }
    assert expected
    assert found["json"].text == expected
    assert found["json"].usage.seconds == 5
    assert found["text"] == expected + "\n"
    whole = found["verbose_json"]
    assert (whole.text, whole.duration, whole.language) == (expected, 5.0, "english")
    assert "".join(segment.text for segment in whole.segments).strip() == expected
    spoken = [segment for segment in whole.segments if segment.text]
    assert found["vtt"].startswith("WEBVTT\n\n00:00:")
    times = re.findall(r"(\d\d:\d\d:\d\d),(\d{3}) --> ", found["srt"])
    assert [f"{a}.{b}" for a, b in times] == [f"00:00:{s.start:06.3f}" for s in spoken]


def test_rates_and_channels_are_brought_to_one(sdk: openai.OpenAI, sounds: Any) -> None:
    """The same melody in other files has the same length."""
    for rate, channels in ((8_000, 1), (44_100, 2), (48_000, 6), (22_051, 1)):
        file = sounds.wav(melody(2.0, rate=rate), rate, channels)
        found = transcribe(sdk, file, response_format="verbose_json")
        assert found.duration == pytest.approx(2.0, abs=0.001)


def test_a_wav_from_a_pipe_does_not_know_its_length(sdk: openai.OpenAI, sounds: Any) -> None:
    samples = (melody(2.0) * 32767).astype("<i2").tobytes()
    file = sounds.raw(samples, declared=0xFFFFFFFF)
    assert transcribe(sdk, file, response_format="verbose_json").duration == 2.0


def test_a_stream_has_the_text_of_the_whole(sdk: openai.OpenAI, sounds: Any) -> None:
    file = sounds.wav(melody(40.0, 3))
    whole = transcribe(sdk, file, extra_body={"seed": 7}).text
    events = list(transcribe(sdk, file, stream=True, extra_body={"seed": 7}))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas).strip() == whole
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole
    assert events[-1].usage is not None


def test_the_language_is_heard_and_translations_are_another_task(
    sdk: openai.OpenAI, sounds: Any
) -> None:
    file = sounds.wav(melody(3.0))
    heard = transcribe(sdk, file, language=openai.omit, response_format="verbose_json")
    named = transcribe(sdk, file, language=heard.language, response_format="verbose_json")
    assert heard.language == named.language
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI's SDK says so of it
        english = sdk.audio.translations.create(
            model=MODEL, file=("a.wav", file), response_format="verbose_json", temperature=0.05
        )
    heard_figures = [segment.avg_logprob for segment in heard.segments]
    english_figures = [segment.avg_logprob for segment in english.segments]  # type: ignore[union-attr]
    assert english_figures != heard_figures


def test_a_stream_of_text_goes_on_beside_many_sounds(
    hearing: Any, sdk: openai.OpenAI, sounds: Any
) -> None:
    """Ten sounds at once, more than are said together, beside a chat whose tokens stay the same."""
    ask = {"model": "tiny", "prompt": "a b c", "max_tokens": 48, "temperature": 0}
    ask["ignore_eos"] = True
    alone = hearing.ok("/v1/completions", **ask)["choices"][0]["text"]
    files = [sounds.wav(melody(2.0, seed)) for seed in range(3)]
    expected = [transcribe(sdk, file, extra_body={"seed": 7}).text for file in files]
    with ThreadPoolExecutor(11) as pool:
        asked = [
            pool.submit(transcribe, sdk, files[at % 3], extra_body={"seed": 7}) for at in range(10)
        ]
        wait_until(lambda: hearing.state.sounds().queue.live > 1 or asked[0].done())
        events = hearing.events("/v1/completions", **ask)
        texts = [one.result().text for one in asked]
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"]) == alone
    assert texts == [expected[at % 3] for at in range(10)]


def test_who_goes_away_frees_its_row(hearing: Any, sounds: Any) -> None:
    queue = hearing.state.sounds().queue
    wait_until(lambda: queue.live == 0)
    form = {"language": "en", "stream": "true", "temperature": "0.05"}
    with httpx.stream(
        "POST",
        hearing.url + PATH,
        data=form,
        files={"file": sounds.wav(melody(85.0))},
        timeout=PATIENCE_S,
    ) as stream:
        assert stream.status_code == 200
        assert queue.live == 1
    wait_until(lambda: queue.live == 0)


def test_a_log_line_and_metrics_say_how_long_a_sound_was(
    hearing: Any, sdk: openai.OpenAI, sounds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def counted() -> tuple[float, float]:
        figures = hearing.http.get("/debug/metrics").json()["server"]
        found = (figures[f"mlx_parallm:{name}_total"] for name in _COUNTERS)
        return next(found), next(found)

    caplog.set_level(logging.INFO, "mlx_parallm.access")
    before, file = counted(), sounds.wav(melody(1.25))
    transcribe(sdk, file, extra_headers={"x-request-id": "mine"})
    list(transcribe(sdk, file, stream=True))
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == pytest.approx((2, 2.5))
    wait_until(lambda: "mine audio_seconds=1.25" in caplog.text)


def test_the_model_is_listed(hearing: Any, sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]
    assert names == ["tiny", MODEL]
    card = hearing.http.get(f"/v1/models/{MODEL}").json()
    assert card["type"] == "transcription" and card["capabilities"]["transcription"]
    assert card["bytes"] == hearing.engine.loaded.whisper.nbytes


def test_too_many_and_too_large_at_once_are_told_to_wait(hearing: Any, sounds: Any) -> None:
    queue, file = hearing.state.sounds().queue, sounds.wav(melody(1.0))
    wait_until(lambda: queue.live == 0)
    queue._most = 0
    full = hearing.http.post(PATH, files={"file": file})
    queue._most, queue._live, most = 8, 1, queue._max_bytes
    queue._max_bytes = 0
    large = hearing.http.post(PATH, files={"file": file})
    queue._live, queue._max_bytes = 0, most
    assert (full.status_code, large.status_code) == (429, 503)
    assert full.headers["retry-after"] and large.headers["retry-after"]


def test_without_a_model_for_sounds(serve: Any, sounds: Any) -> None:
    answer = serve().http.post(PATH, files={"file": sounds.wav(melody(1.0))})
    assert answer.status_code == 404
    assert "--transcription-model" in answer.json()["error"]["message"]


def test_events_are_events(hearing: Any, sounds: Any) -> None:
    """As other clients read them: every line is data, and there is no [DONE], as OpenAI has it."""
    form = {"stream": "true", "language": "en", **{k: str(v) for k, v in CALM.items()}}
    answer = hearing.http.post(PATH, data=form, files={"file": sounds.wav(melody(1.0))})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert parse_events(answer.text, done=False)[-1]["type"] == "transcript.text.done"
