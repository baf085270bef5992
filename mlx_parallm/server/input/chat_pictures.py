"""The pictures of a conversation: prepared beside the event loop, and put into its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mlx_parallm.errors import UnsupportedError
from mlx_parallm.models.vision.families import family_of
from mlx_parallm.models.vision.media import Media
from mlx_parallm.models.vision.prepared import PreparedPicture
from mlx_parallm.server.input.chat_template import Conversation
from mlx_parallm.server.input.content_shape import ContentShape
from mlx_parallm.server.input.pictures.asked import AskedPicture
from mlx_parallm.server.input.pictures.pictures import Pictures

if TYPE_CHECKING:
    from mlx_parallm.models.loader import LoadedModel


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

    async def prepare(self, asked: Sequence[AskedPicture]) -> list[PreparedPicture]:
        """What the model's processor makes of pictures.

        Raises:
            UnsupportedError: the model does not see, or this server has not what it sees with.
            InvalidRequestError: one cannot be had, or the processor refuses it.
        """
        if not asked:
            return []
        vision = self._loaded.vision
        if vision is None:
            raise asked[0].refused(self._loaded.blindness, UnsupportedError)
        return await self._pictures.gather(asked, vision.prepare)

    def fitted(self, conversation: Conversation) -> Conversation:
        """The conversation with contents that the chat template takes."""
        if self._shape is None:
            return conversation
        return replace(conversation, messages=self._shape.fitted(conversation.messages))

    def expand(self, text: str, pictures: Sequence[PreparedPicture]) -> str:
        """A rendered conversation with what stands for its pictures."""
        vision = self._loaded.vision
        return vision.expand(text, pictures) if vision is not None and pictures else text

    def media(self, ids: Sequence[int], pictures: Sequence[PreparedPicture]) -> Media | None:
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
        return ContentShape.of(
            tokenizer, family.placeholder if vision is None else vision.placeholder
        )
