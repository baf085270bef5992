"""Spectrograms against transformers' feature extractor, which is NumPy too."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from mlx_parallm.models.audio.log_mel import WINDOW_FRAMES, log_mel
from tests.models.audio.tiny_whisper import melody


@pytest.mark.parametrize(("seconds", "mels"), [(0.2, 80), (7.3, 80), (29.5, 128)])
def test_a_short_sound_is_what_transformers_makes_of_it(seconds: float, mels: int) -> None:
    samples = melody(seconds)
    theirs = WhisperFeatureExtractor(feature_size=mels)(samples, sampling_rate=16_000)
    ours = log_mel(samples, mels)
    assert ours.shape == (len(samples) // 160 + WINDOW_FRAMES, mels)
    np.testing.assert_allclose(ours[:WINDOW_FRAMES], theirs["input_features"][0].T, atol=1e-4)


def test_a_long_sound_is_computed_in_parts() -> None:
    """Of frames that are computed apart, every one is that of the sound around it alone."""
    samples = melody(65.0)
    whole = log_mel(samples, 80)
    part = log_mel(samples[29 * 16_000 : 33 * 16_000], 80)
    loud = whole[2905:3295] > whole.min()
    np.testing.assert_allclose(whole[2905:3295][loud], part[5:395][loud], atol=1e-4)
