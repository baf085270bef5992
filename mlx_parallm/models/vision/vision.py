"""Vision: what a loaded model that sees adds to its text model."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from mlx_parallm.models.vision.prepared import (
    Prepared,
    PreparedPicture,
    PreparedVideo,
    pictures_in,
    spans_of,
)
from mlx_parallm.models.vision.shelf import Shelf
from mlx_parallm.models.vision.temporal_patches import groups_of
from mlx_parallm.models.vision.tower import Tower, as_inputs
from mlx_parallm.models.vision.video import Video
from mlx_parallm.models.vision.video_layout import Frames, TemporalPatches

_SHARE = 16  # of the machine's memory, what prepared pictures may take
LOW_DETAIL = 512  # pixels of the longer side at most, as OpenAI's "low"
_OF_TEXT = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
_OF_PROCESSOR = ("_", "image_token_id")  # how names begin of what it makes for itself
_TOKENS_PER_SECOND = 4  # transformers' for a config.json without it
_AS_IT_IS: Mapping[str, Any] = {}


class Vision:
    """Turns pictures and videos into what prompts and the tower need.

    `prepare`, `prepare_video` and `expand` may be called on any thread, the tower only on the
    engine's.

    Args:
        family: of the model.
        processor: mlx-vlm's, of the checkpoint.
        tower: computes features.
        fingerprint: of processor and tower: other ones give other features.
        feature_id: the token that stands for one row of features.
        text_config: of the model.
        merge: features are made of squares of so many patches a side.
        depth: text layers that get deeper features.

    Attributes:
        placeholder, video_placeholder: what stands for a picture and for a video in a rendered
            conversation.
        shelf: of prepared pictures and videos.
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
        self.placeholder = family.placeholder or str(processor.image_token)
        self.video_placeholder = family.video_placeholder or self.placeholder
        self._feature_ids = {feature_id}
        if isinstance(family.video, TemporalPatches):
            self._feature_ids.add(int(processor.video_token_id))
        names = sorted({self.placeholder, self.video_placeholder}, key=len, reverse=True)
        self._placeholders = re.compile("|".join(map(re.escape, names)))
        self.shelf = Shelf(total_memory() // _SHARE)
        # Processors keep settings in attributes while they work.
        self._lock = threading.Lock()

    def inputs(self, model: Any) -> PictureInputs:
        """The ways into the text model, as it will run."""
        rope = self._text_config.get("rope_scaling") or self._text_config.get("rope_parameters")
        sections = (rope or {}).get("mrope_section")
        blank = int(self._text_config.get("pad_token_id") or 0)
        return PictureInputs(model, self.family.axes, sections, self._depth, blank)

    def media(self, ids: Sequence[int], shown: Sequence[Prepared]) -> Media:
        """The pictures of a tokenised prompt that `expand` has made.

        Raises:
            InvalidRequestError: the prompt has other placeholders, too.
        """
        try:
            spans = spans_of(ids, self._feature_ids, shown)
        except ValueError as error:
            raise InvalidRequestError(
                f"The prompt does not fit its pictures: {error}.", param="messages"
            ) from None
        self._check_widths([picture for one in shown for picture in pictures_in(one)])
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

    def key_of(self, picture: Picture, settings: Mapping[str, Any] = _AS_IT_IS) -> bytes:
        """Names the features of a picture; equal for equal pixels looked at alike."""
        fineness = _fineness(picture.detail) + (repr(sorted(settings.items())) if settings else "")
        parts = (self._fingerprint, picture.digest, fineness.encode())
        return hashlib.blake2b(b"".join(parts), digest_size=32).digest()

    def prepare(self, picture: Picture, settings: Mapping[str, Any] = _AS_IT_IS) -> PreparedPicture:
        """Resize and cut a picture as the model wants it. Slow: for a pool of threads.

        Args:
            settings: of the image processor for this picture.

        Raises:
            InvalidRequestError: the model's processor refuses it.
            OutOfMemoryError: waiting requests hold too many pictures.
        """
        found = self.shelf.find(self.key_of(picture, settings))
        if not isinstance(found, PreparedPicture):
            found = self._prepare(picture, settings)
            self.shelf.put(found)
        return found

    def _prepare(self, picture: Picture, settings: Mapping[str, Any]) -> PreparedPicture:
        image = Image.fromarray(picture.pixels)
        if picture.detail == "low" and max(image.size) > LOW_DETAIL:
            image.thumbnail((LOW_DETAIL, LOW_DETAIL), Image.Resampling.LANCZOS)
        with self._working("a picture", picture, settings):
            found = self._processed(image)
        ids = self._ids_in(found)
        inputs = _inputs_in(found)
        return PreparedPicture(
            key=self.key_of(picture, settings),
            text=self._text_of(ids),
            num_features=ids.count(self.feature_id),
            grid=self._grid(inputs),
            inputs=inputs,
        )

    def prepare_video(self, video: Video) -> PreparedVideo:
        """The same for a video's frames.

        Raises:
            InvalidRequestError, OutOfMemoryError: as prepare().
        """
        layout = self.family.video
        assert layout is not None
        if isinstance(layout, Frames):
            frames = tuple(self.prepare(frame, layout.settings) for frame in video.frames)
            text = layout.write(video, [frame.text for frame in frames])
            return PreparedVideo(self._video_key(video), text, frames)
        found = self.shelf.find(self._video_key(video))
        if not isinstance(found, PreparedVideo):
            found = self._in_patches(video, layout)
            self.shelf.put(found)
        return found

    def _in_patches(self, video: Video, layout: TemporalPatches) -> PreparedVideo:
        frames = np.stack([frame.pixels for frame in video.frames])
        # Indices of frames over the frames of a second: times, where there is one a second.
        seen = {"video_metadata": [{"frames_indices": list(video.times), "fps": 1.0}]}
        with self._working("a video", video.frames[0]):
            found = self._processor(
                text=[layout.placeholder],
                videos=[frames],
                add_special_tokens=False,
                **(seen if layout.timed else {}),
            )
        inputs = _inputs_in(found)
        groups = groups_of(video, inputs, self._merge, self._fingerprint)
        step = None
        if not layout.timed:
            step = self._seconds_step(video, len(groups)) if layout.by_seconds else 1.0
        return PreparedVideo(
            self._video_key(video), self._text_of(self._ids_in(found)), groups, step
        )

    def _seconds_step(self, video: Video, groups: int) -> float:
        """Positions from one group of frames to the next (Qwen2.5-VL, arXiv 2502.13923)."""
        each = -(-len(video.frames) // groups)
        per_second = self._text_config["vision_config"].get("tokens_per_second")
        return float(per_second or _TOKENS_PER_SECOND) * each / video.fps

    def _video_key(self, video: Video) -> bytes:
        told = f"{video.times} {video.duration}".encode()
        digests = [frame.digest for frame in video.frames]
        return hashlib.blake2b(
            b"".join([self._fingerprint, told, *digests]), digest_size=32
        ).digest()

    @contextmanager
    def _working(
        self, noun: str, picture: Picture, settings: Mapping[str, Any] = _AS_IT_IS
    ) -> Iterator[None]:
        """The processor works inside, for this thread only.

        Raises:
            InvalidRequestError: it refuses a picture of this size.
        """
        worker = self._processor.image_processor if settings else None
        with self._lock:
            before = {name: getattr(worker, name) for name in settings}
            try:
                for name, value in settings.items():
                    setattr(worker, name, value)
                yield
            except (ValueError, ZeroDivisionError) as error:
                raise InvalidRequestError(
                    f"The model cannot take {noun} of {picture.width} x {picture.height} pixels: "
                    f"{str(error)[:200]}",
                    param="messages",
                ) from None
            finally:
                for name, value in before.items():
                    setattr(worker, name, value)

    def expand(self, text: str, shown: Sequence[Prepared]) -> str:
        """A rendered conversation with what stands for each picture and video in the place of
        its placeholder.

        Raises:
            InvalidRequestError: it has others than these.
        """
        found = self._placeholders.findall(text)
        if found != [self._placeholder_of(one) for one in shown]:
            raise InvalidRequestError(
                f"The chat template writes {len(found)} placeholders for {len(shown)} "
                "pictures and videos, or in another order.",
                param="messages",
            )
        texts = iter([one.text for one in shown])
        return self._placeholders.sub(lambda _: next(texts), text)

    def _placeholder_of(self, one: Prepared) -> str:
        return self.video_placeholder if isinstance(one, PreparedVideo) else self.placeholder

    def _processed(self, image: Image.Image) -> Any:
        """What the processor makes of the family's placeholder and a picture."""
        settings = {} if self.family.bare_call else {"add_special_tokens": False}
        return self._processor(text=[self.placeholder], images=[image], **settings)

    def _ids_in(self, found: Any) -> list[int]:
        return self._bare(np.array(found["input_ids"]).reshape(-1).tolist())

    def _bare(self, ids: list[int]) -> list[int]:
        """Without what the tokenizer writes at the beginning of every text."""
        before = self._processor.tokenizer.encode("") if self.family.bare_call else []
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


def _inputs_in(found: Any) -> dict[str, np.ndarray]:
    kept = {
        name: value
        for name, value in dict(found).items()
        if name not in _OF_TEXT and not name.startswith(_OF_PROCESSOR)
    }
    return as_inputs(kept)


def _fineness(detail: Detail) -> str:
    return "low" if detail == "low" else "full"
