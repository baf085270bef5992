"""Where structure begins for a model that thinks."""

from __future__ import annotations

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_parallm.engine.grammar import Gate
from mlx_parallm.server.answer import Dialect
from mlx_parallm.server.structured import gate_before_answer


def tokenizer(*special: str) -> TokenizerWrapper:
    """Bytes and special tokens, which come first."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: place for place, name in enumerate((*special, *symbols))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0]))


def gate(words: TokenizerWrapper, prompt: str, continued: str | None = None) -> Gate | None:
    return gate_before_answer(Dialect(words), words, prompt, continued)


def test_a_model_without_thinking_begins_at_once() -> None:
    assert gate(tokenizer("<end>"), "x") is None


def test_a_model_that_thinks_may_do_so_first() -> None:
    words = tokenizer("<end>", "<think>", "</think>")
    assert gate(words, "user: x\nassistant:") == Gate((2,), opener=1)


def test_thinking_that_the_prompt_has_begun_goes_on() -> None:
    words = tokenizer("<end>", "[THINK]", "[/THINK]")
    assert gate(words, "assistant: [THINK]\n") == Gate((2,))
    assert gate(words, "assistant: [THINK] hm", continued="[THINK] hm") == Gate((2,))


def test_thinking_that_is_over_does_not_begin_again() -> None:
    words = tokenizer("<end>", "<think>", "</think>")
    assert gate(words, "assistant: <think>\n\n</think>\n\n") is None
    assert gate(words, "assistant: {", continued="{") is None


def test_harmonys_answer_is_the_final_channel() -> None:
    names = (
        "<|return|>",
        "<|start|>",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "<|call|>",
        "final",
    )
    words = tokenizer(*names)
    assert gate(words, "<|start|>assistant") == Gate((2, 6, 3))
