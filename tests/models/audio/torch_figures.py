"""Writes torch_figures.json: what transformers' Whisper says on torch, which tests have not.

    python -m tests.models.audio.torch_figures      with torch 2.13.0 and transformers 5.23.0

Weights and sounds are those of tiny_whisper.py, drawn by NumPy, so that they are the same there.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.audio.tiny_whisper import (
    LANGUAGE_CODES,
    TEXT_TOKENS,
    VOCABULARY,
    make_tiny_whisper,
    melody,
)

FIGURES = Path(__file__).with_name("torch_figures.json")
SEEDS = (0, 1, 2, 3)
SECONDS = 4.2
# Start, English, transcribe, 0.00, and three words.
TOKENS = (50258, 50259, 50359, 50364, 104, 2000, 30000)
PLACES = tuple(range(0, VOCABULARY, 2593))
SAID = 16


def figures_of(folder: Path, seed: int) -> dict[str, Any]:
    """Logits of TOKENS at PLACES, keys of the first cross-attention, and a greedy transcript."""
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    from mlx_parallm.models.audio.loading import load_whisper

    model = WhisperForConditionalGeneration.from_pretrained(str(folder)).eval()
    mel = WhisperFeatureExtractor()(melody(SECONDS, seed), sampling_rate=16_000)["input_features"]
    features = torch.tensor(np.asarray(mel))
    with torch.no_grad():
        encoded = model.model.encoder(features).last_hidden_state
        keys = model.model.decoder.layers[0].encoder_attn.k_proj(encoded)[0]
        logits = model(input_features=features, decoder_input_ids=torch.tensor([TOKENS])).logits[0]
        _allow(model, load_whisper(str(folder)).vocabulary)
        said = model.generate(
            features,
            language="en",
            task="transcribe",
            return_timestamps=True,
            max_new_tokens=SAID,
            do_sample=False,
            num_beams=1,
        )
    return {
        "keys": keys[::100, :4].tolist(),
        "logits": logits[:, list(PLACES)].tolist(),
        "best": logits.argmax(-1).tolist(),
        "said": said[0].tolist(),
    }


def _allow(model: Any, vocabulary: Any) -> None:
    """Tell transformers what may be said; a checkpoint's generation_config.json has this."""
    languages = {f"<|{code}|>": TEXT_TOKENS + 2 + at for at, code in enumerate(LANGUAGE_CODES)}
    allowed = {
        "is_multilingual": True,
        "lang_to_id": languages,
        "task_to_id": {"translate": 50358, "transcribe": 50359},
        "no_timestamps_token_id": 50363,
        "max_initial_timestamp_index": 50,
        "suppress_tokens": list(vocabulary.never),
        "begin_suppress_tokens": list(vocabulary.blank),
        "decoder_start_token_id": 50258,
        "eos_token_id": TEXT_TOKENS,
        "pad_token_id": TEXT_TOKENS,
        "max_length": 32,
    }
    for name, value in allowed.items():
        setattr(model.generation_config, name, value)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folders = [make_tiny_whisper(Path(name) / str(seed), seed=seed) for seed in SEEDS]
        figures = [figures_of(folder, seed) for seed, folder in zip(SEEDS, folders, strict=True)]
    FIGURES.write_text(json.dumps(figures) + "\n")
