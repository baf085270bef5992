"""WeightLoader: a checkpoint's weights by name, and the same in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_parallm.errors import ModelLoadError, NotFoundError
from mlx_parallm.mili.device import check_device
from mlx_parallm.models.loader import resolve
from mlx_parallm.models.qwen3_config import Qwen3Config

# The largest number of E4M3, https://arxiv.org/abs/2209.05433.
FP8_MAX = 448.0
SCALE = ".scale"


@dataclass(frozen=True, slots=True)
class _Packed:
    """A weight in E4M3: codes uint8, of which `scale` makes the numbers."""

    codes: mx.array
    scale: mx.array


class WeightLoader:
    """Reads weights, keeps them by their names in the checkpoint, and packs them.

    Args:
        model_path: a folder in Hugging Face's format, "bundled", or a hub id.
        config: the model's shape; not needed to load, kept for whoever builds the model.
        device: None, or the device that MLX computes on.
        dtype: of the weights that get_weight returns.

    Raises:
        UnsupportedError: another device.
    """

    def __init__(
        self,
        model_path: str,
        config: Qwen3Config | None = None,
        device: str | None = None,
        dtype: mx.Dtype = mx.float32,
    ) -> None:
        check_device(device)
        self.model_path = model_path
        self.config = config
        self.dtype = dtype
        self._weights: dict[str, mx.array] = {}
        self._packed: dict[str, _Packed] = {}

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies.

        Raises:
            ModelLoadError: there is no such folder or hub id.
        """
        return resolve(self.model_path)

    @property
    def names(self) -> list[str]:
        """The weights that were loaded."""
        return sorted([*self._weights, *self._packed])

    def load_from_safetensors(self) -> dict[str, mx.array]:
        """The weights of model_path, by name, in dtype.

        Raises:
            ModelLoadError: there are none, or they cannot be read.
        """
        folder = self.folder
        files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelLoadError(f"{folder}: there are no *.safetensors weights in this folder")
        found: dict[str, mx.array] = {}
        for file in files:
            found |= _read(file)
        self._packed = {}
        self._weights = {name: self._cast(weight) for name, weight in found.items()}
        return dict(self._weights)

    def load_from_huggingface(self, model_name: str) -> dict[str, mx.array]:
        """The weights of a hub id, which is downloaded where it is not cached, or of a folder.

        The loader is about that model from now on.

        Raises:
            ModelLoadError: there is no such model.
        """
        self.model_path = model_name
        return self.load_from_safetensors()

    def quantize_to_fp8(self) -> dict[str, mx.array]:
        """Pack every matrix into E4M3, one byte a number; get_weight unpacks it.

        Vectors, such as those of norms, stay as they are.

        Returns:
            what is held now: a packed weight as uint8 codes, and beside it its scale, float32
            with no axis, under the weight's name and ".scale".

        Raises:
            ModelLoadError: nothing was loaded.
        """
        if not self.names:
            raise ModelLoadError("no weights are loaded: load_from_safetensors comes first")
        for name in [name for name, weight in self._weights.items() if weight.ndim > 1]:
            self._packed[name] = _pack(self._weights.pop(name))
        held = dict(self._weights)
        for name, packed in self._packed.items():
            held |= {name: packed.codes, name + SCALE: packed.scale}
        return held

    def get_weight(self, name: str) -> mx.array:
        """One weight in dtype.

        Raises:
            NotFoundError: no such weight was loaded.
        """
        if name in self._packed:
            packed = self._packed[name]
            return mx.from_fp8(packed.codes, self.dtype) * packed.scale.astype(self.dtype)
        if name not in self._weights:
            raise NotFoundError(f"there is no weight {name!r}", param="name")
        return self._weights[name]

    def get_weight_as_numpy(self, name: str) -> np.ndarray:
        """One weight as a NumPy array; bfloat16, which NumPy lacks, as float32.

        Raises:
            NotFoundError: no such weight was loaded.
        """
        weight = self.get_weight(name)
        return np.array(weight.astype(mx.float32) if weight.dtype == mx.bfloat16 else weight)

    def _cast(self, weight: mx.array) -> mx.array:
        return weight.astype(self.dtype) if mx.issubdtype(weight.dtype, mx.floating) else weight


def _read(file: Path) -> dict[str, mx.array]:
    try:
        return dict(mx.load(str(file)))  # type: ignore[arg-type]
    except RuntimeError as error:
        raise ModelLoadError(f"{file}: not readable as safetensors: {error}") from error


def _pack(weight: mx.array) -> _Packed:
    """The largest entry becomes the largest number of E4M3."""
    weight = weight.astype(mx.float32)
    scale = mx.maximum(mx.abs(weight).max() / FP8_MAX, float(np.finfo(np.float32).tiny))
    packed = _Packed(mx.to_fp8(weight / scale), scale)
    mx.eval(packed.codes, packed.scale)
    return packed
