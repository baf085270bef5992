"""Pictures that were drawn once and are used in several steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from bundled.sample import is_held_out
from tqdm import tqdm

from .drawing import draw
from .scenes import Scene, any_scene

# By how many pixels a picture is moved, at most: less than what parts two places.
_MOVE = 2


@dataclass
class Pool:
    """scenes and pictures (N, edge, edge, 3) uint8; the same places belong together."""

    scenes: list[Scene]
    pictures: np.ndarray

    def some(
        self, rng: random.Random, count: int, shares: Mapping[str, float] | None = None
    ) -> tuple[list[Scene], np.ndarray]:
        """`count` of them, each a little brighter or darker than it was drawn, and moved by a
        pixel or two.

        Args:
            shares: of the kinds of scenes; as they were drawn where there are none.
        """
        if shares is None:
            chosen = [rng.randrange(len(self.scenes)) for _ in range(count)]
        else:
            kinds = rng.choices(list(shares), list(shares.values()), k=count)
            chosen = [rng.choice(self._places[kind]) for kind in kinds]
        light = np.array([rng.randint(-8, 8) for _ in chosen])[:, None, None, None]
        pictures = np.clip(self.pictures[chosen].astype(np.int16) + light, 0, 255)
        moved = [_moved(rng, picture) for picture in pictures.astype(np.uint8)]
        return [self.scenes[i] for i in chosen], np.stack(moved)

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Of the scenes of each kind."""
        found: dict[str, list[int]] = {}
        for place, scene in enumerate(self.scenes):
            found.setdefault(scene.kind, []).append(place)
        return found


def _moved(rng: random.Random, picture: np.ndarray) -> np.ndarray:
    down, right = (rng.randint(0, 2 * _MOVE) for _ in range(2))
    wide = np.pad(picture, ((_MOVE, _MOVE), (_MOVE, _MOVE), (0, 0)), mode="edge")
    return wide[down : down + picture.shape[0], right : right + picture.shape[1]]


def scene_of(
    rng: random.Random,
    *,
    held_out: bool,
    make: Callable[[random.Random], Scene] = any_scene,
) -> Scene:
    """Draw scenes until one lies on the wanted side of the split."""
    while True:
        scene = make(rng)
        if is_held_out(scene.key) is held_out:
            return scene


def make_pool(seed: int, count: int, edge: int, path: Path | None = None) -> Pool:
    """`count` pictures of the training's side; those of an earlier call where `path` has them."""
    rng = random.Random(seed)
    scenes, pictures = [], np.zeros((count, edge, edge, 3), dtype=np.uint8)
    known = path is not None and path.exists()
    if known and path is not None:
        pictures = np.load(path)
    for i in tqdm(range(count), desc="pictures", dynamic_ncols=True, mininterval=5):
        one = random.Random(rng.getrandbits(64))
        scenes.append(scene_of(one, held_out=False))
        if not known:
            pictures[i] = draw(one, scenes[-1], edge)
    if path is not None and not known:
        np.save(path, pictures)
    return Pool(scenes, pictures)
