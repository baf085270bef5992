"""What messages of chats say: texts, pictures and videos, and how videos are looked at."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from mlx_parallm.models.vision.picture import DETAILS
from mlx_parallm.server.input.pictures.asked import AskedPicture, asked_picture
from mlx_parallm.server.input.pictures.messages import Part, Said, said_of
from mlx_parallm.server.input.videos.asked import AskedVideo, asked_video
from mlx_parallm.server.input.videos.sampling import ALL, Sampling
from mlx_parallm.server.schemas.base import RequestModel, unsupported, wrong

_TEXT_PARTS = {"text": "text", "refusal": "refusal"}
_PICTURE_PART = "image_url"
_VIDEO_PART = "video_url"


def _said(value: Any) -> Said:
    """Message content: the texts of several parts are joined by newlines, unless there is
    something to look at among them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong("expected a string or a list of content parts")
    return said_of([_part(part, index) for index, part in enumerate(value)])


def _part(part: Any, index: int) -> Part:
    if isinstance(part, AskedPicture | AskedVideo):
        # Of another API's request, which has become one of ours.
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise wrong("expected an object with a type", f"{index}")
    if kind == _PICTURE_PART:
        return asked_picture(part.get(_PICTURE_PART), f"{index}.{_PICTURE_PART}")
    if kind == _VIDEO_PART:
        return asked_video(part.get(_VIDEO_PART), f"{index}.{_VIDEO_PART}")
    if kind not in _TEXT_PARTS:
        raise unsupported(f"content of type {kind[:40]!r} is not supported", f"{index}.type")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise wrong("expected a string", f"{index}.{_TEXT_PARTS[kind]}")
    return text


_TEXT_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_PICTURE_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": _PICTURE_PART},
        _PICTURE_PART: {
            "type": "object",
            "properties": {
                "url": {
                    "type": "string",
                    "description": "data:image/png;base64,..., or https: of a host that is allowed",
                },
                "detail": {"enum": list(DETAILS)},
            },
            "required": ["url"],
        },
    },
    "required": ["type", _PICTURE_PART],
}
_VIDEO_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": _VIDEO_PART},
        _VIDEO_PART: {
            "type": "object",
            "properties": {
                "url": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "array", "items": {"type": "string"}},
                    ],
                    "description": "data:video/mp4;base64,...; data:video/jpeg;base64,... with "
                    "commas between frames; a list of frames, each data:image/...; or https: of a "
                    "host that is allowed",
                },
            },
            "required": ["url"],
        },
    },
    "required": ["type", _VIDEO_PART],
}

Content = Annotated[
    Said,
    PlainValidator(_said),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {"anyOf": [_TEXT_SCHEMA, _PICTURE_SCHEMA, _VIDEO_SCHEMA]},
                },
            ]
        }
    ),
]


def _not_none(value: int) -> int:
    if value == 0:
        raise wrong("expected a number of frames, or -1 for all of them")
    return value


NumFrames = Annotated[
    int,
    Field(ge=ALL),
    AfterValidator(_not_none),
    WithJsonSchema({"anyOf": [{"const": ALL}, {"type": "integer", "minimum": 1}]}),
]


class VideoOptions(RequestModel):
    """Which frames of a video are shown."""

    num_frames: NumFrames | None = Field(
        default=None, description="Frames to show, spread evenly; -1: all. Default: 32 of a file."
    )
    fps: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Frames to show of a second; of a list of frames, those of a second.",
    )


class MediaOptions(RequestModel):
    """How what is looked at is read, vLLM's name for it."""

    video: VideoOptions = VideoOptions()

    @property
    def sampling(self) -> Sampling:
        """Which frames of videos are shown."""
        return Sampling(self.video.num_frames, self.video.fps)
