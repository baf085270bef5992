"""Pictures and videos of a conversation: prepared beside the event loop, put into its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from mlx_parallm.errors import UnsupportedError
from mlx_parallm.models.vision.families import family_of
from mlx_parallm.models.vision.media import Media
from mlx_parallm.models.vision.prepared import Prepared
from mlx_parallm.models.vision.video import Video
from mlx_parallm.server.input.chat_template import Conversation
from mlx_parallm.server.input.content_shape import ContentShape
from mlx_parallm.server.input.pictures.messages import pictures_of
from mlx_parallm.server.input.pictures.pictures import AskedMedia, Pictures
from mlx_parallm.server.input.videos.asked import AskedVideo
from mlx_parallm.server.input.videos.sampling import Sampling
from mlx_parallm.server.schemas.chat import ChatTemplateFields

if TYPE_CHECKING:
    from mlx_parallm.models.loader import LoadedModel
    from mlx_parallm.models.vision.picture import Picture
    from mlx_parallm.models.vision.vision import Vision


class ChatPictures:
    """Pictures in the prompts of one loaded model.

    Args:
        loaded: which may not see; conversations without pictures are then left as they are.
        pictures: how those that requests name are had.
    """

    def __init__(self, loaded: LoadedModel, pictures: Pictures) -> None:
        self._loaded = loaded
        self._pictures = pictures

    def close(self) -> None:
        """End the threads."""
        self._pictures.close()

    async def prepare(
        self, asked: Sequence[AskedMedia], sampling: Sampling | None = None
    ) -> list[Prepared]:
        """What the model's processor makes of pictures and videos.

        Args:
            sampling: which frames of videos are shown.

        Raises:
            UnsupportedError: the model does not see, or takes no videos, or this server has not
                what it sees with.
            InvalidRequestError: one cannot be had, or the processor refuses it.
        """
        if not asked:
            return []
        vision = self._loaded.vision
        if vision is None:
            raise asked[0].refused(self._loaded.blindness, UnsupportedError)
        video = next((one for one in asked if isinstance(one, AskedVideo)), None)
        if video is not None and vision.family.video is None:
            kind = self._loaded.config.get("model_type")
            raise video.refused(
                f"{kind} models take no videos; send frames as pictures, in parts image_url.",
                UnsupportedError,
            )
        return await self._pictures.gather(asked, partial(_prepared, vision), sampling)

    async def prepare_all(self, body: ChatTemplateFields) -> list[Prepared]:
        """The same for all that a request shows."""
        return await self.prepare(pictures_of(body.messages), body.media_io_kwargs.sampling)

    def fitted(self, conversation: Conversation) -> Conversation:
        """The conversation with contents that the chat template takes."""
        if self._shape is None:
            return conversation
        return replace(conversation, messages=self._shape.fitted(conversation.messages))

    def expand(self, text: str, pictures: Sequence[Prepared]) -> str:
        """A rendered conversation with what stands for its pictures."""
        vision = self._loaded.vision
        return vision.expand(text, pictures) if vision is not None and pictures else text

    def media(self, ids: Sequence[int], pictures: Sequence[Prepared]) -> Media | None:
        """The pictures of a tokenised prompt; None where it has none."""
        vision = self._loaded.vision
        return vision.media(ids, pictures) if vision is not None and pictures else None

    @cached_property
    def _shape(self) -> ContentShape | None:
        """Of the template; None for families whose templates know text only."""
        family, vision = family_of(self._loaded.config), self._loaded.vision
        tokenizer = self._loaded.tokenizer
        if family is None or not tokenizer.has_chat_template:
            return None
        where = family if vision is None else vision
        return ContentShape.of(tokenizer, where.placeholder, where.video_placeholder)


def _prepared(vision: Vision, seen: Picture | Video) -> Prepared:
    return vision.prepare_video(seen) if isinstance(seen, Video) else vision.prepare(seen)
