"""Heads of Hugging Face `*ForSequenceClassification` checkpoints: a score per label.

The body is the decoder that mlx-lm knows; the head is one matrix, `score.weight`
(or `classifier.weight` with a bias), applied to the last token's hidden state. Encoders have a
layer with tanh before it, and take the first token's: BERT's pooler, RoBERTa's classifier.dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

HEAD_NAMES = ("score", "classifier", "v_head")
_OUTPUTS = (*HEAD_NAMES, "classifier.out_proj")
_DENSE = ("bert.pooler.dense", "pooler.dense", "classifier.dense")


@dataclass(frozen=True)
class ClassificationHead:
    """A linear map from a hidden state to labels.

    Attributes:
        weight: (labels, D) float32; bias: (labels,) float32.
        labels: their names, LABEL_0 ... where the checkpoint has none.
        dense: (D, D) and (D,) of a layer with tanh before it, of encoders.
    """

    weight: np.ndarray
    bias: np.ndarray
    labels: tuple[str, ...]
    dense: tuple[np.ndarray, np.ndarray] | None = None

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """(labels,) of a (D,) hidden state."""
        if self.dense is not None:
            hidden = np.tanh(self.dense[0] @ hidden + self.dense[1])
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


def load_head(
    folder: Path, config: Mapping[str, Any], *, encoder: bool = False
) -> ClassificationHead | None:
    """The head of a checkpoint; None where it has none."""
    arrays: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        arrays |= mx.load(str(file))  # type: ignore[arg-type]
    output = _linear(arrays, _OUTPUTS)
    if output is None:
        return None
    names = config.get("id2label") or {}
    labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(len(output[0])))
    return ClassificationHead(*output, labels, _linear(arrays, _DENSE) if encoder else None)


def _linear(
    arrays: Mapping[str, mx.array], names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Weight and bias of the first layer that is there; the bias is 0 where it has none."""
    name = next((name for name in names if f"{name}.weight" in arrays), None)
    if name is None:
        return None
    weight = np.array(arrays[f"{name}.weight"].astype(mx.float32))
    bias = arrays.get(f"{name}.bias")
    if bias is None:
        return weight, np.zeros(len(weight), np.float32)
    return weight, np.array(bias.astype(mx.float32))
