"""Heads of Hugging Face `*ForSequenceClassification` checkpoints: a score per label.

The body is the decoder that mlx-lm knows; the head is one matrix, `score.weight`
(or `classifier.weight` with a bias), applied to the last token's hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

HEAD_NAMES = ("score", "classifier", "v_head")


@dataclass(frozen=True)
class ClassificationHead:
    """A linear map from a hidden state to labels.

    Attributes:
        weight: (labels, D) float32; bias: (labels,) float32.
        labels: their names, LABEL_0 ... where the checkpoint has none.
    """

    weight: np.ndarray
    bias: np.ndarray
    labels: tuple[str, ...]

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """(labels,) of a (D,) hidden state."""
        return np.asarray(self.weight @ hidden + self.bias)

    def probabilities(self, hidden: np.ndarray) -> np.ndarray:
        """(labels,) softmax of the logits; the sigmoid where there is one label."""
        logits = self.logits(hidden)
        if len(logits) == 1:
            return np.asarray(1 / (1 + np.exp(-logits)))
        shifted = np.exp(logits - logits.max())
        return np.asarray(shifted / shifted.sum())


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that this is a sequence classifier."""
    names = config.get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def load_head(folder: Path, config: Mapping[str, Any]) -> ClassificationHead | None:
    """The head of a checkpoint; None where it has none."""
    for file in sorted(folder.glob("*.safetensors")):
        arrays = mx.load(str(file))
        for name in HEAD_NAMES:
            weight = arrays.get(f"{name}.weight")  # type: ignore[union-attr]
            if weight is not None:
                bias = arrays.get(f"{name}.bias")  # type: ignore[union-attr]
                return _head(weight, bias, config)
    return None


def _head(weight: mx.array, bias: mx.array | None, config: Mapping[str, Any]) -> ClassificationHead:
    matrix = np.array(weight.astype(mx.float32))
    offset = np.zeros(len(matrix), np.float32)
    if bias is not None:
        offset = np.array(bias.astype(mx.float32))
    names = config.get("id2label") or {}
    labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(len(matrix)))
    return ClassificationHead(matrix, offset, labels)
