"""A tiny Whisper with random weights, in transformers' format, and sounds for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mlx_audio.stt.models.whisper.tokenizer import LANGUAGES
from safetensors.numpy import save_file

from tests.server.conftest import byte_symbols

TEXT_TOKENS = 50257
VOCABULARY = 51865
WIDTH, LAYERS, HEADS, MELS = 32, 2, 4, 80
CONTEXT, HEARD = 32, 1500
FIRST_TIMESTAMP = 50364
LANGUAGE_CODES = tuple(LANGUAGES)[:99]


def make_tiny_whisper(folder: Path, *, seed: int = 0, sharpness: float = 6.0) -> Path:
    """Write a multilingual Whisper of two layers, 32 wide, which says 16 tokens of a window.

    Args:
        sharpness: of its answers; large ones leave little to chance at any temperature.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(seed, sharpness), str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    _write_tokenizer(folder)
    return folder


CONFIG = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "vocab_size": VOCABULARY,
    "num_mel_bins": MELS,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 4 * WIDTH,
    "decoder_ffn_dim": 4 * WIDTH,
    "max_source_positions": HEARD,
    "max_target_positions": CONTEXT,
    "pad_token_id": TEXT_TOKENS,
    "bos_token_id": TEXT_TOKENS,
    "eos_token_id": TEXT_TOKENS,
    "decoder_start_token_id": TEXT_TOKENS + 1,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
}


def weights(seed: int, sharpness: float) -> dict[str, np.ndarray]:
    """By transformers' names."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    found: dict[str, np.ndarray] = {}

    def linear(name: str, out: int, into: int, *, bias: bool = True, scale: float = 1.5) -> None:
        found[f"{name}.weight"] = draw(out, into, scale=scale * into**-0.5)
        if bias:
            found[f"{name}.bias"] = draw(out, scale=0.1)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = 1 + draw(WIDTH, scale=0.1)
        found[f"{name}.bias"] = draw(WIDTH, scale=0.1)

    def attention(name: str) -> None:
        for part in ("q", "k", "v", "out"):
            linear(f"{name}.{part}_proj", WIDTH, WIDTH, bias=part != "k")

    encoder, decoder = "model.encoder", "model.decoder"
    found[f"{encoder}.conv1.weight"] = draw(WIDTH, MELS, 3, scale=(3 * MELS) ** -0.5)
    found[f"{encoder}.conv1.bias"] = draw(WIDTH, scale=0.1)
    found[f"{encoder}.conv2.weight"] = draw(WIDTH, WIDTH, 3, scale=(3 * WIDTH) ** -0.5)
    found[f"{encoder}.conv2.bias"] = draw(WIDTH, scale=0.1)
    found[f"{encoder}.embed_positions.weight"] = _sinusoids()
    found[f"{decoder}.embed_positions.weight"] = draw(CONTEXT, WIDTH, scale=3.0)
    embedding = draw(VOCABULARY, WIDTH, scale=sharpness * WIDTH**-0.5)
    embedding[FIRST_TIMESTAMP:] *= 1.4  # so that there are some
    found[f"{decoder}.embed_tokens.weight"] = embedding
    for side in (encoder, decoder):
        for layer in range(LAYERS):
            block = f"{side}.layers.{layer}"
            names = ("self_attn", "encoder_attn") if side == decoder else ("self_attn",)
            for name in names:
                attention(f"{block}.{name}")
                norm(f"{block}.{name}_layer_norm")
            linear(f"{block}.fc1", 4 * WIDTH, WIDTH)
            linear(f"{block}.fc2", WIDTH, 4 * WIDTH)
            norm(f"{block}.final_layer_norm")
        norm(f"{side}.layer_norm")
    return found


def _sinusoids() -> np.ndarray:
    steps = np.log(10000) / (WIDTH // 2 - 1)
    times = np.arange(HEARD)[:, None] * np.exp(-steps * np.arange(WIDTH // 2))[None]
    return np.concatenate([np.sin(times), np.cos(times)], axis=1).astype(np.float32)


def _write_tokenizer(folder: Path) -> None:
    """One token a byte, words that no text has for the other ids, and Whisper's special ones."""
    vocabulary = {symbol: at for at, symbol in enumerate(byte_symbols())}
    vocabulary |= {f"\u0120w{at}": at for at in range(len(vocabulary), TEXT_TOKENS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    languages = [f"<|{code}|>" for code in LANGUAGE_CODES]
    special = [
        *("<|endoftext|>", "<|startoftranscript|>", *languages, "<|translate|>"),
        *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"),
        "<|notimestamps|>",
    ]
    stamps = [f"<|{at * 0.02:.2f}|>" for at in range(1501)]
    added = {
        str(TEXT_TOKENS + at): {"content": name, "special": name in special}
        | {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        for at, name in enumerate([*special, *stamps])
    }
    config = {
        "tokenizer_class": "WhisperTokenizer",
        "added_tokens_decoder": added,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def melody(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """(n,) float32: tones that change four times a second."""
    rng = np.random.default_rng(seed)
    times = np.arange(int(seconds * rate)) / rate
    pitches = rng.uniform(100, 3000, size=int(seconds * 4) + 1)
    phase = np.cumsum(pitches[(times * 4).astype(int)]) / rate
    return (0.4 * np.sin(2 * np.pi * phase)).astype(np.float32)
