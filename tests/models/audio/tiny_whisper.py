"""A small Whisper with random weights, in transformers' format, and sounds for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mlx_audio.stt.models.whisper.tokenizer import LANGUAGES
from safetensors.numpy import save_file

from tests.server.conftest import byte_symbols

TEXT_TOKENS = 50257
VOCABULARY = 51865
MELS, HEARD = 80, 1500
FIRST_TIMESTAMP = 50364
LANGUAGE_CODES = tuple(LANGUAGES)[:99]


@dataclass(frozen=True)
class Sizes:
    """Of a Whisper. encoder: its layers and heads. context: twice what it says of a window."""

    width: int = 32
    layers: int = 2
    heads: int = 4
    encoder: tuple[int, int] = (2, 4)
    context: int = 32


TINY = Sizes()
# The encoder takes most of the time; this is enough where nothing is compared with torch.
QUICK = replace(TINY, encoder=(1, 1))


def make_tiny_whisper(
    folder: Path, *, seed: int = 0, sharpness: float = 6.0, sizes: Sizes = TINY
) -> Path:
    """Write a multilingual Whisper, by default of two layers, 32 wide.

    Args:
        sharpness: of its answers; large ones leave little to chance at any temperature.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(seed, sharpness, sizes), str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config(sizes)))
    _write_tokenizer(folder)
    return folder


def config(sizes: Sizes) -> dict[str, object]:
    """Its config.json."""
    encoder_layers, encoder_heads = sizes.encoder
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": VOCABULARY,
        "num_mel_bins": MELS,
        "d_model": sizes.width,
        "encoder_layers": encoder_layers,
        "decoder_layers": sizes.layers,
        "encoder_attention_heads": encoder_heads,
        "decoder_attention_heads": sizes.heads,
        "encoder_ffn_dim": 4 * sizes.width,
        "decoder_ffn_dim": 4 * sizes.width,
        "max_source_positions": HEARD,
        "max_target_positions": sizes.context,
        "pad_token_id": TEXT_TOKENS,
        "bos_token_id": TEXT_TOKENS,
        "eos_token_id": TEXT_TOKENS,
        "decoder_start_token_id": TEXT_TOKENS + 1,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
    }


def weights(seed: int, sharpness: float, sizes: Sizes) -> dict[str, np.ndarray]:
    """By transformers' names."""
    width = sizes.width
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    found: dict[str, np.ndarray] = {}

    def linear(name: str, out: int, into: int, *, bias: bool = True, scale: float = 1.5) -> None:
        found[f"{name}.weight"] = draw(out, into, scale=scale * into**-0.5)
        if bias:
            found[f"{name}.bias"] = draw(out, scale=0.1)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = 1 + draw(width, scale=0.1)
        found[f"{name}.bias"] = draw(width, scale=0.1)

    def attention(name: str) -> None:
        for part in ("q", "k", "v", "out"):
            linear(f"{name}.{part}_proj", width, width, bias=part != "k")

    encoder, decoder = "model.encoder", "model.decoder"
    found[f"{encoder}.conv1.weight"] = draw(width, MELS, 3, scale=(3 * MELS) ** -0.5)
    found[f"{encoder}.conv1.bias"] = draw(width, scale=0.1)
    found[f"{encoder}.conv2.weight"] = draw(width, width, 3, scale=(3 * width) ** -0.5)
    found[f"{encoder}.conv2.bias"] = draw(width, scale=0.1)
    found[f"{encoder}.embed_positions.weight"] = _sinusoids(width)
    found[f"{decoder}.embed_positions.weight"] = draw(sizes.context, width, scale=3.0)
    embedding = draw(VOCABULARY, width, scale=sharpness * width**-0.5)
    embedding[FIRST_TIMESTAMP:] *= 1.4  # so that there are some
    found[f"{decoder}.embed_tokens.weight"] = embedding
    for side, layers in ((encoder, sizes.encoder[0]), (decoder, sizes.layers)):
        for layer in range(layers):
            block = f"{side}.layers.{layer}"
            names = ("self_attn", "encoder_attn") if side == decoder else ("self_attn",)
            for name in names:
                attention(f"{block}.{name}")
                norm(f"{block}.{name}_layer_norm")
            linear(f"{block}.fc1", 4 * width, width)
            linear(f"{block}.fc2", width, 4 * width)
            norm(f"{block}.final_layer_norm")
        norm(f"{side}.layer_norm")
    return found


def _sinusoids(width: int) -> np.ndarray:
    steps = np.log(10000) / (width // 2 - 1)
    times = np.arange(HEARD)[:, None] * np.exp(-steps * np.arange(width // 2))[None]
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
