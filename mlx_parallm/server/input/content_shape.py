"""How a chat template takes the content of messages: as text, as parts, or either.

Templates of models that see go through a message's parts and write a placeholder for each
picture. Some of them know parts only, and write nothing for plain text; older ones know text
only, into which the placeholder is to be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

_PROBE = "Zq7probe"
PICTURE = {"type": "image"}
"""Stands for a picture in the content of a message."""
VIDEO = {"type": "video"}
"""Stands for a video."""


@dataclass(frozen=True, slots=True)
class ContentShape:
    """What a template takes.

    Attributes:
        takes_text, takes_parts: as content.
        takes_videos: as parts.
        placeholder, video_placeholder: what stands for a picture and a video in a rendered
            conversation.
    """

    takes_text: bool
    takes_parts: bool
    takes_videos: bool
    placeholder: str
    video_placeholder: str

    @classmethod
    def of(cls, tokenizer: Any, placeholder: str, video_placeholder: str) -> ContentShape:
        """Try a template.

        Args:
            tokenizer: an mlx-lm TokenizerWrapper.
        """
        text = {"type": "text", "text": _PROBE}
        takes_text = _PROBE in _rendered(tokenizer, _PROBE)
        rendered = _rendered(tokenizer, [PICTURE, text])
        takes_parts = _PROBE in rendered and rendered.count(placeholder) == 1
        takes_videos = _rendered(tokenizer, [VIDEO, text]).count(video_placeholder) == 1
        return cls(
            takes_text or not takes_parts, takes_parts, takes_videos, placeholder, video_placeholder
        )

    def fitted(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages whose content the template takes, each a new dict."""
        return [{**message, "content": self._content(message["content"])} for message in messages]

    def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return content if self.takes_text else [{"type": "text", "text": content}]
        if self.takes_parts:
            return [self._part(part) for part in content]
        return "\n".join(map(self._written, content))

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        if part != VIDEO or self.takes_videos:
            return part
        if self.video_placeholder == self.placeholder:
            return dict(PICTURE)
        return {"type": "text", "text": self.video_placeholder}

    def _written(self, part: dict[str, Any]) -> str:
        if part == VIDEO:
            return self.video_placeholder
        return self.placeholder if part == PICTURE else str(part["text"])


def _rendered(tokenizer: Any, content: Any) -> str:
    messages = [{"role": "user", "content": content}]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except (TemplateError, TypeError, ValueError):
        return ""
