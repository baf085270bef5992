"""POST /v1/audio/transcriptions and /v1/audio/translations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from mlx_parallm.errors import InvalidRequestError, ParallmError
from mlx_parallm.server.audio.form import FORM_BYTES, parse_form
from mlx_parallm.server.audio.formats import Transcript, answer
from mlx_parallm.server.audio.listening import Listener
from mlx_parallm.server.audio.schemas import (
    TranscriptionRequest,
    TranscriptionResponse,
    TranslationRequest,
)
from mlx_parallm.server.handlers import CLIENT_CLOSED_REQUEST, envelope_for
from mlx_parallm.server.input.body import read_raw, validate
from mlx_parallm.server.middleware import mark_client_gone
from mlx_parallm.server.openapi import EVENTS, GENERATION_ERRORS, form_of
from mlx_parallm.server.output.responses import EVENTS as FRAMING
from mlx_parallm.server.output.responses import client_gone
from mlx_parallm.server.state import state_of

if TYPE_CHECKING:
    from mlx_parallm.models.audio.segments import Segment
    from mlx_parallm.models.audio.vocabulary import Task

router = APIRouter(tags=["Sounds"])

_FILE = "file"
_Fields = TypeVar("_Fields", bound=TranslationRequest)


@router.post(
    "/v1/audio/transcriptions",
    summary="Write a sound down",
    response_model=TranscriptionResponse,
    responses={200: EVENTS, **GENERATION_ERRORS},
    openapi_extra=form_of(TranscriptionRequest, _FILE),
)
async def transcribe(request: Request) -> Response:
    """The text of a WAV, MP3 or FLAC file, whole or as a stream of server-sent events."""
    body, listener = await _begin(request, TranscriptionRequest, "transcribe")
    if body.stream:
        return await _stream(request, listener)
    return await _whole(request, listener, body.response_format, "transcribe")


@router.post(
    "/v1/audio/translations",
    summary="Write a sound down in English",
    response_model=TranscriptionResponse,
    responses=GENERATION_ERRORS,
    openapi_extra=form_of(TranslationRequest, _FILE),
)
async def translate(request: Request) -> Response:
    """The text of a WAV, MP3 or FLAC file in English, whatever is spoken in it."""
    body, listener = await _begin(request, TranslationRequest, "translate")
    return await _whole(request, listener, body.response_format, "translate")


async def _begin(request: Request, kind: type[_Fields], task: Task) -> tuple[_Fields, Listener]:
    """Read a form, and begin with its sound."""
    state = state_of(request)
    sounds = state.sounds()
    raw = await read_raw(request, state.settings.max_audio_bytes + FORM_BYTES)
    form = parse_form(raw, request.headers.get("content-type", ""), _FILE)
    body = validate(kind, form.fields)
    sounds.check_model(body.model)
    if form.file is None:
        raise InvalidRequestError("Invalid value for 'file': this field is required.", param=_FILE)
    listener = await sounds.begin(form.file, body, task)
    request.scope["state"]["record"].audio_seconds = listener.seconds
    return body, listener


async def _whole(request: Request, listener: Listener, how: str, task: Task) -> Response:
    async def collect() -> list[Segment]:
        return [segment async for window in listener.windows() for segment in window]

    gone = asyncio.create_task(client_gone(request.receive))
    work = asyncio.create_task(collect())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            mark_client_gone(request.scope)
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        segments = work.result()
    finally:
        gone.cancel()
        work.cancel()
        listener.cancel()
    state_of(request).metrics.on_transcription(listener.seconds)
    return answer(Transcript(task, listener.language, listener.seconds, segments), how)


async def _stream(request: Request, listener: Listener) -> Response:
    """Events; what fails before the first one is an answer of its own."""
    windows = listener.windows()
    first = await anext(windows, None)

    async def events() -> AsyncIterator[bytes]:
        found: list[Segment] = []
        try:
            window = first
            while window is not None:
                found += window
                yield _event("delta", {"delta": "".join(segment.text for segment in window)})
                window = await anext(windows, None)
        except ParallmError as error:
            yield FRAMING.framed(envelope_for(error, request.scope))
            return
        finally:
            await windows.aclose()
        state_of(request).metrics.on_transcription(listener.seconds)
        whole = Transcript("transcribe", listener.language, listener.seconds, found)
        yield _event("done", {"text": whole.text, "usage": whole.usage})

    headers = {name.decode(): value.decode() for name, value in FRAMING.headers}
    return StreamingResponse(events(), headers=headers)


def _event(kind: str, value: dict[str, object]) -> bytes:
    return FRAMING.framed({"type": f"transcript.text.{kind}", **value})
