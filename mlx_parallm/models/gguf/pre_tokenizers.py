"""How a text falls into words before byte pairs are merged: the kinds that GGUF files name.

`tokenizer.ggml.pre` names one; llama.cpp's expressions are in its llama-vocab.cpp, the original
ones in each model's tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FRONT = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = f"{_FRONT}{_UPPER}*{_LOWER}+|{_FRONT}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _SLASH_TAIL
_GPT4O = (
    f"{_FRONT}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_FRONT}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}" + _SLASH_TAIL
)


@dataclass(frozen=True)
class WordKind:
    """One way to find words.

    Attributes:
        make: a fresh pre-tokenizer.
        composed: whether the text is brought into Unicode's composed form (NFC) first.
        whole_words: whether a word that is a token needs no merges to become it.
        begins: whether a text begins with a token of its own, where the file does not say.
    """

    make: Callable[[], PreTokenizer]
    composed: bool = False
    whole_words: bool = False
    begins: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done to the text before."""
        return normalizers.NFC() if self.composed else None


def _expression(*patterns: str) -> Callable[[], PreTokenizer]:
    """Each divides further what the ones before it have left."""

    def make() -> PreTokenizer:
        words = [Split(Regex(pattern), "isolated") for pattern in patterns]
        return pre_tokenizers.Sequence([*words, ByteLevel(add_prefix_space=False, use_regex=False)])

    return make


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> PreTokenizer:
    return pre_tokenizers.Sequence([Digits(individual_digits=True), _gpt2()])


_KINDS = {
    (
        *("gpt-2", "mpt", "olmo", "phi-2", "jina-v2-es", "jina-v2-de", "modern-bert"),
        *("gigachat", "a.x-4.0", "mellum", "exaone4", "trillion", "granite-docling"),
        *("roberta-bpe", "jina-v1-en", "jina-v2-code"),
    ): WordKind(_gpt2),
    (
        *("smollm", "starcoder", "refact", "command-r"),
        *("codeshell", "exaone", "minerva-7b", "mellum2"),
    ): WordKind(_single_digits),
    (
        *("llama-bpe", "llama3", "llama-v3"),
        *("falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ): WordKind(_expression(_LLAMA3), whole_words=True, begins=True),
    ("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"): WordKind(_expression(_LLAMA3)),
    ("qwen2", "stablelm2"): WordKind(_expression(_QWEN2), composed=True),
    ("deepseek-r1-qwen", "kormo", "megrez", "hunyuan", "solar-open"): WordKind(_expression(_QWEN2)),
    ("qwen35",): WordKind(_expression(_QWEN35), composed=True),
    ("tekken",): WordKind(_expression(_TEKKEN), whole_words=True, begins=True),
    ("gpt-4o", "llama4", "kanana2", "minimax-m2"): WordKind(_expression(_GPT4O)),
    ("seed-coder",): WordKind(_expression(_SEED)),
    ("deepseek-v3", "hunyuan-dense"): WordKind(_expression(*_DEEPSEEK3)),
}
WORD_KINDS: dict[str, WordKind] = {name: kind for names, kind in _KINDS.items() for name in names}
