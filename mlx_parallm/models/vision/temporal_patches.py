"""A video's frames as groups that the tower takes at once, each of them prepared as a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from mlx_parallm.models.vision.prepared import PreparedPicture
from mlx_parallm.models.vision.video import Video


def groups_of(
    video: Video, inputs: Mapping[str, np.ndarray], merge: int, fingerprint: bytes
) -> tuple[PreparedPicture, ...]:
    """One prepared picture for each group of frames.

    In Qwen's towers a patch attends to patches of its own group only, so that the features of
    a group are the same by itself.

    Args:
        inputs: of mlx-vlm's video processor: pixel_values_videos (T * H * W, values) and
            video_grid_thw (1, 3), both of patches.
        merge: features are made of squares of so many patches a side.
        fingerprint: of processor and tower.
    """
    time, height, width = (int(size) for size in inputs["video_grid_thw"].reshape(3))
    patches = inputs["pixel_values_videos"].reshape(time, height * width, -1)
    together = -(-len(video.frames) // time)
    # Into how many pixels a frame is made depends on how many frames there are.
    shared = [fingerprint, f"of {len(video.frames)} frames".encode()]
    made = []
    for number in range(time):
        frames = video.frames[number * together : (number + 1) * together]
        digests = [frame.digest for frame in frames]
        grid = (1, height // merge, width // merge)
        made.append(
            PreparedPicture(
                key=hashlib.blake2b(b"".join(shared + digests), digest_size=32).digest(),
                text="",
                num_features=grid[1] * grid[2],
                grid=grid,
                inputs={
                    "pixel_values": patches[number].copy(),
                    "image_grid_thw": np.array([[1, height, width]]),
                },
            )
        )
    return tuple(made)
