"""Vision: what a loaded model that sees adds to its text model."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.device_memory import total_memory
from mlx_parallm.models.limits import MAX_WIDTH
from mlx_parallm.models.vision.families import Family
from mlx_parallm.models.vision.inputs import PictureInputs
from mlx_parallm.models.vision.media import Media
from mlx_parallm.models.vision.picture import Detail, Picture
from mlx_parallm.models.vision.prepared import PreparedPicture, spans_of
from mlx_parallm.models.vision.shelf import Shelf
from mlx_parallm.models.vision.tower import Tower, as_inputs

_SHARE = 16  # of the machine's memory, what prepared pictures may take
LOW_DETAIL = 512  # pixels of the longer side at most, as OpenAI's "low"
_OF_TEXT = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


class Vision:
    """Turns pictures into what prompts and the tower need.

    `prepare` and `expand` may be called on any thread, the tower only on the engine's.

    Args:
        family: of the model.
        processor: mlx-vlm's, of the checkpoint.
        tower: computes features.
        fingerprint: of processor and tower: other ones give other features.
        feature_id: the token that stands for one row of features.
        text_config: of the model.
        merge: features are made of squares of so many patches a side.
        depth: text layers that get deeper features.
    """

    def __init__(
        self,
        family: Family,
        processor: Any,
        tower: Tower,
        fingerprint: bytes,
        feature_id: int,
        text_config: Mapping[str, Any],
        *,
        merge: int = 1,
        depth: int = 0,
    ) -> None:
        self.family = family
        self.tower = tower
        self.feature_id = feature_id
        self._processor = processor
        self._fingerprint = fingerprint
        self._text_config = text_config
        self._merge, self._depth = merge, depth
        self._placeholder = family.placeholder or str(processor.image_token)
        self.shelf = Shelf(total_memory() // _SHARE)
        # Processors keep settings in attributes while they work.
        self._lock = threading.Lock()

    def inputs(self, model: Any) -> PictureInputs:
        """The ways into the text model, as it will run."""
        rope = self._text_config.get("rope_scaling") or self._text_config.get("rope_parameters")
        sections = (rope or {}).get("mrope_section")
        blank = int(self._text_config.get("pad_token_id") or 0)
        return PictureInputs(model, self.family.axes, sections, self._depth, blank)

    def media(self, ids: Sequence[int], pictures: Sequence[PreparedPicture]) -> Media:
        """The pictures of a tokenised prompt that `expand` has made.

        Raises:
            InvalidRequestError: the prompt has other placeholders, too.
        """
        try:
            spans = spans_of(ids, self.feature_id, pictures)
        except ValueError as error:
            raise InvalidRequestError(
                f"The prompt does not fit its pictures: {error}.", param="messages"
            ) from None
        self._check_widths(pictures)
        return Media(ids, spans, axes=self.family.axes is not None, whole=self.family.whole)

    def _check_widths(self, pictures: Sequence[PreparedPicture]) -> None:
        """A picture that is computed as a whole has to fit into one forward of a row."""
        widest = max((picture.num_features for picture in pictures), default=0)
        if self.family.whole and widest > MAX_WIDTH // 2:
            raise InvalidRequestError(
                f"A picture of {widest} tokens is too large for this server, which computes "
                f"{MAX_WIDTH // 2} of one at once; ask for less detail.",
                param="messages",
            )

    def key_of(self, picture: Picture) -> bytes:
        """Names the features of a picture; equal for equal pixels looked at alike."""
        parts = (self._fingerprint, picture.digest, _fineness(picture.detail).encode())
        return hashlib.blake2b(b"".join(parts), digest_size=32).digest()

    def prepare(self, picture: Picture) -> PreparedPicture:
        """Resize and cut a picture as the model wants it. Slow: for a pool of threads.

        Raises:
            InvalidRequestError: the model's processor refuses it.
            OutOfMemoryError: waiting requests hold too many pictures.
        """
        found = self.shelf.find(self.key_of(picture))
        if found is None:
            found = self._prepare(picture)
            self.shelf.put(found)
        return found

    def _prepare(self, picture: Picture) -> PreparedPicture:
        image = Image.fromarray(picture.pixels)
        if picture.detail == "low" and max(image.size) > LOW_DETAIL:
            image.thumbnail((LOW_DETAIL, LOW_DETAIL), Image.Resampling.LANCZOS)
        try:
            with self._lock:
                found = self._processed(image)
        except (ValueError, ZeroDivisionError) as error:
            raise InvalidRequestError(
                f"The model cannot take a picture of {picture.width} x {picture.height} pixels: "
                f"{str(error)[:200]}",
                param="messages",
            ) from None
        ids = self._bare(np.array(found["input_ids"]).reshape(-1).tolist())
        inputs = as_inputs({k: v for k, v in dict(found).items() if k not in _OF_TEXT})
        return PreparedPicture(
            key=self.key_of(picture),
            text=self._text_of(ids),
            num_features=ids.count(self.feature_id),
            grid=self._grid(inputs),
            inputs=inputs,
        )

    def expand(self, text: str, pictures: Sequence[PreparedPicture]) -> str:
        """A rendered conversation with each picture's own text in the place of its placeholder.

        Raises:
            InvalidRequestError: it has more or fewer placeholders than there are pictures.
        """
        parts = text.split(self._placeholder)
        if len(parts) != len(pictures) + 1:
            raise InvalidRequestError(
                f"The chat template writes {len(parts) - 1} placeholders for {len(pictures)} "
                "pictures.",
                param="messages",
            )
        texts = [picture.text for picture in pictures]
        return parts[0] + "".join(t + part for t, part in zip(texts, parts[1:], strict=True))

    def _processed(self, image: Image.Image) -> Any:
        """What the processor makes of the family's placeholder and a picture."""
        settings = {} if self.family.bare_call else {"add_special_tokens": False}
        return self._processor(text=[self._placeholder], images=[image], **settings)

    def _bare(self, ids: list[int]) -> list[int]:
        """Without what the tokenizer writes at the beginning of every text."""
        before = self._processor.tokenizer("")["input_ids"] if self.family.bare_call else []
        return ids[len(before) :] if before and ids[: len(before)] == before else ids

    def _text_of(self, ids: list[int]) -> str:
        return str(
            self._processor.tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _grid(self, inputs: dict[str, np.ndarray]) -> tuple[int, int, int] | None:
        if self.family.axes is None:
            return None
        time, height, width = inputs["image_grid_thw"].reshape(-1, 3)[0].tolist()
        return time, height // self._merge, width // self._merge


def _fineness(detail: Detail) -> str:
    return "low" if detail == "low" else "full"
