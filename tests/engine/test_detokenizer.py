"""Text from tokens: equal to decoding all of them, stop strings wherever they fall."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlx_parallm.engine.detokenizer import TextDelta, TextStream, token_bytes, token_text
from mlx_parallm.engine.sequence import FinishReason, Output, SamplingParams, TokenLogprob
from tests.engine import mock

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and then over the wall",
    "Straße naïve café 東京 日本語 русский язык 😀 👩‍👩‍👧 e\u0301",
    "def f(x):\n\treturn  x + 1\n\n    print('hello')\r\n",
    "  leading and   inner   spaces  ",
]
TEXTS = [*CORPUS, "", " ", "a", "😀😀😀", "\ufffd broken \ufffd", "e\u0301\u0301", "🏳️‍🌈 of 🇯🇵"]


def wrap(backend: Tokenizer, **special: str) -> TokenizerWrapper:
    return TokenizerWrapper(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
        )
    )


def byte_level() -> TokenizerWrapper:
    """GPT-2's and Llama 3's way: merges of bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    return wrap(backend, eos_token="<|end|>")


def sentencepiece() -> TokenizerWrapper:
    """Llama 2's and Mistral's way: words that begin with a space, and bytes for the rest."""
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = metaspace
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    trained.train_from_iterator([CORPUS[0], "Hello wide world, café"] * 8, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = metaspace
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(special)
    return wrap(backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}
each_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


def outputs(tokens: list[int], sizes: list[int] | None = None) -> list[Output]:
    """The tokens in outputs of the given sizes (1 each), the last one with an end."""
    result, rest = [], list(tokens)
    for size in sizes or []:
        result.append(Output(1, rest[:size]))
        rest = rest[size:]
    result += [Output(1, [token]) for token in rest]
    return [*result, Output(1, [], finish_reason=FinishReason.LENGTH)]


def push_all(stream: TextStream, pieces: list[Output]) -> list[TextDelta]:
    """Deltas up to the one that ends the text, as a caller reads them."""
    deltas = []
    for piece in pieces:
        deltas.append(stream.push(piece))
        if deltas[-1].finish_reason is not None:
            break
    return deltas


def streamed(tokenizer: Any, tokens: list[int], **settings: Any) -> str:
    stream = TextStream(tokenizer, SamplingParams(), **settings)
    text = "".join(delta.text for delta in push_all(stream, outputs(tokens)))
    assert stream.text == text
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def decode(tokenizer: Any, tokens: list[int], skip: bool = True) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=skip))


# Equal to decoding all


@each_tokenizer
@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = encode(tokenizer, text)
    assert streamed(tokenizer, tokens) == decode(tokenizer, tokens)
    if kind == "byte-level" or not text.startswith(" "):  # else the tokenizer loses one
        assert decode(tokenizer, tokens) == text


@each_tokenizer
@given(text=st.text(max_size=40))
def test_any_text_comes_back(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = encode(tokenizer, text)
    assert streamed(tokenizer, tokens) == decode(tokenizer, tokens)


@given(tokens=st.lists(st.integers(0, 385), max_size=60), skip=st.booleans())
def test_any_tokens_equal_decoding_all(tokens: list[int], skip: bool) -> None:
    """Byte-level, with bytes that make no characters and special tokens among them."""
    tokenizer = TOKENIZERS["byte-level"]
    assert streamed(tokenizer, tokens, skip_special_tokens=skip) == decode(tokenizer, tokens, skip)


@given(st.lists(st.integers(0, 159), max_size=60), st.booleans())
def test_any_pieces_equal_decoding_all(tokens: list[int], skip: bool) -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    assert streamed(tokenizer, tokens, skip_special_tokens=skip) == decode(tokenizer, tokens, skip)


@each_tokenizer
@given(before=st.text(min_size=1, max_size=12), text=st.text(max_size=20))
def test_a_completion_goes_on_where_its_prompt_ended(kind: str, before: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    prompt, tokens = encode(tokenizer, before), encode(tokenizer, text)
    whole, start = decode(tokenizer, prompt + tokens), decode(tokenizer, prompt)
    if start.strip():  # behind nothing but spaces there is no telling which are leading ones
        assert start + streamed(tokenizer, tokens, prompt=prompt) == whole


def test_the_leading_space_of_a_completion_is_kept() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    tokens = encode(tokenizer, "world")
    assert streamed(tokenizer, tokens) == "world"
    assert streamed(tokenizer, tokens, prompt=encode(tokenizer, "Hello")) == " world"


def test_a_delta_never_shows_part_of_a_character() -> None:
    tokenizer = mock.byte_tokenizer()
    stream = TextStream(tokenizer, SamplingParams())
    deltas = push_all(stream, outputs(encode(tokenizer, "a😀é!")))
    assert [delta.text for delta in deltas] == ["a", "", "", "", "😀", "", "é", "!", ""]


def test_incomplete_bytes_are_shown_at_the_end() -> None:
    tokenizer = mock.byte_tokenizer()
    tokens = encode(tokenizer, "ok😀")[:-1]
    assert streamed(tokenizer, tokens) == decode(tokenizer, tokens) == "ok\ufffd"


def test_broken_bytes_are_not_waited_for() -> None:
    tokenizer = mock.byte_tokenizer()
    broken = encode(tokenizer, "😀")[:1] * 60
    stream = TextStream(tokenizer, SamplingParams())
    shown = "".join(delta.text for delta in push_all(stream, outputs(broken))[:40])
    assert len(shown) > 20
    for count in range(20, 40):  # the character behind them is whole wherever it falls
        tokens = [*broken[:count], *encode(tokenizer, "😀!")]
        assert streamed(tokenizer, tokens) == decode(tokenizer, tokens)


@each_tokenizer
def test_special_tokens_are_left_out_or_kept(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    end = tokenizer.eos_token_id
    tokens = [*encode(tokenizer, "the dog"), *[end] * 30, *encode(tokenizer, "over the wall")]
    assert streamed(tokenizer, tokens) == decode(tokenizer, tokens)
    kept = streamed(tokenizer, tokens, skip_special_tokens=False)
    assert kept == decode(tokenizer, tokens, skip=False)
    assert kept.count(tokenizer.eos_token) == 30


@each_tokenizer
@pytest.mark.parametrize("what", ["text", "broken bytes", "special tokens"])
def test_the_cost_is_linear(kind: str, what: str) -> None:
    tokenizer = TOKENIZERS[kind]
    broken = tokenizer.convert_tokens_to_ids("<0xF0>" if kind == "sentencepiece" else "ð")
    some = {
        "text": encode(tokenizer, " ".join(CORPUS)),
        "broken bytes": [broken],
        "special tokens": [tokenizer.eos_token_id],
    }[what]

    def seconds(count: int) -> float:
        tokens = (some * count)[:count]
        began = time.process_time()
        streamed(tokenizer, tokens, stop=["a stop that never comes"])
        return time.process_time() - began

    seconds(100)
    assert seconds(10_000) < 3
    assert min(seconds(8000) for _ in range(2)) < 16 * max(seconds(1000) for _ in range(2))


# Stop strings


def reference_cut(texts: list[str], stops: list[str], include: bool) -> tuple[str, str | None, int]:
    """Text, stop string and tokens used, from the texts of all beginnings."""
    for count, text in enumerate(texts, start=1):
        found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
        if found:
            at, _, stop = min(found)
            return text[: at + len(stop) * include], stop, count
    return (texts[-1] if texts else ""), None, len(texts)


@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 5), max_size=10),
    include=st.booleans(),
)
def test_stop_strings_equal_the_reference(
    text: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    tokenizer = mock.byte_tokenizer()
    tokens = encode(tokenizer, text)
    stream = TextStream(tokenizer, SamplingParams(), stop=stops, include_stop=include)
    deltas = push_all(stream, outputs(tokens, sizes))
    beginnings = [text[: i + 1] for i in range(len(text))]
    wanted, stop, used = reference_cut(beginnings, stops, include)
    assert "".join(delta.text for delta in deltas) == stream.text == wanted
    assert deltas[-1].stop_reason == stop
    reason = FinishReason.LENGTH if stop is None else FinishReason.STOP
    assert deltas[-1].finish_reason is reason
    assert [token for delta in deltas for token in delta.token_ids] == tokens[:used]


@each_tokenizer
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stop", [" the", "lazy dog", "o", "g,", "jumps over the lazy dog, and"])
def test_stop_strings_across_token_borders(kind: str, stop: str, include: bool) -> None:
    tokenizer, text = TOKENIZERS[kind], CORPUS[0]
    at = text.index(stop)
    wanted = text[: at + len(stop) * include]
    assert streamed(tokenizer, encode(tokenizer, text), stop=[stop], include_stop=include) == wanted


@pytest.mark.parametrize("split", range(1, 8))
def test_a_stop_string_split_anywhere_is_held_back(split: int) -> None:
    tokenizer = mock.byte_tokenizer()
    stop, tokens = "</stop>é", encode(tokenizer, "say </stop>é and on")
    border = len(b"say ") + len(stop.encode()[:split])
    stream = TextStream(tokenizer, SamplingParams(), stop=[stop])
    first = stream.push(Output(1, tokens[:border]))
    second = stream.push(Output(1, tokens[border:]))
    assert (first.text, second.text) == ("say ", "")
    assert (first.finish_reason, second.finish_reason) == (None, FinishReason.STOP)
    assert second.stop_reason == stop


def test_what_was_held_back_is_shown_when_it_is_no_stop() -> None:
    tokenizer = mock.byte_tokenizer()
    stream = TextStream(tokenizer, SamplingParams(), stop=["stop!"])
    texts = [d.text for d in push_all(stream, outputs(encode(tokenizer, "a stop?"), [6, 1]))]
    assert texts == ["a ", "stop?", ""]
    held = TextStream(tokenizer, SamplingParams(), stop=["stop!"])
    texts = [d.text for d in push_all(held, outputs(encode(tokenizer, "a stop"), [6]))]
    assert texts == ["a ", "stop"]


def test_a_stop_string_that_incomplete_bytes_complete() -> None:
    """The flush at the end may be what makes the stop string whole."""
    tokenizer = mock.byte_tokenizer()
    tokens = encode(tokenizer, "go x😀")[:-1]
    stream = TextStream(tokenizer, SamplingParams(), stop=["x\ufffd"])
    deltas = push_all(stream, outputs(tokens))
    assert stream.text == "go "
    assert deltas[-1].finish_reason is FinishReason.STOP


def test_empty_stop_strings_are_no_stop_strings() -> None:
    tokenizer = mock.byte_tokenizer()
    assert streamed(tokenizer, encode(tokenizer, "abc"), stop=[""]) == "abc"


# Ends


def ended(token: int, include: bool, **params: Any) -> TextDelta:
    tokenizer = mock.byte_tokenizer()
    stream = TextStream(
        tokenizer,
        SamplingParams(**params),
        include_stop=include,
        skip_special_tokens=False,
    )
    tokens = [*encode(tokenizer, "hi"), token]
    return stream.push(Output(1, tokens, finish_reason=FinishReason.STOP))


@pytest.mark.parametrize(("include", "text"), [(False, "hi"), (True, "hi<|end|>")])
def test_end_tokens_are_left_out_of_the_text(include: bool, text: str) -> None:
    eos = ended(mock.EOS, include, eos_token_ids=frozenset({mock.EOS}))
    stop = ended(mock.EOS, include, stop_token_ids=frozenset({mock.EOS}))
    assert (eos.text, eos.stop_reason) == (text, None)
    assert (stop.text, stop.stop_reason) == (text, mock.EOS)
    assert len(stop.token_ids) == 3


def test_an_end_token_that_did_not_end_is_text() -> None:
    """Before min_tokens, or where the length ended the sequence."""
    tokenizer = mock.byte_tokenizer()
    tokens = encode(tokenizer, "hi!")
    params = SamplingParams(stop_token_ids=frozenset({tokens[-1], tokens[0]}))
    stream = TextStream(tokenizer, params)
    assert stream.push(Output(1, tokens, finish_reason=FinishReason.LENGTH)).text == "hi!"


def test_ends_without_tokens() -> None:
    tokenizer = mock.byte_tokenizer()
    for reason in FinishReason:
        delta = TextStream(tokenizer, SamplingParams()).push(Output(1, finish_reason=reason))
        assert (delta.text, delta.token_ids, delta.finish_reason) == ("", [], reason)


def test_logprobs_are_cut_with_their_tokens() -> None:
    tokenizer = mock.byte_tokenizer()
    tokens = encode(tokenizer, "ab!cd")
    scores = [TokenLogprob(token, -1.0) for token in tokens]
    stream = TextStream(tokenizer, SamplingParams(logprobs=0), stop=["!"])
    delta = stream.push(Output(1, tokens, logprobs=scores))
    assert delta.token_ids == tokens[:3]
    assert delta.logprobs == scores[:3]
    assert delta.token_texts == ["a", "b", "!"]


# One token alone


@each_tokenizer
@given(text=st.text(min_size=1, max_size=20))
def test_bytes_of_tokens_make_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = encode(tokenizer, text)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
        return
    whole = bytes(byte for token in tokens for byte in token_bytes(tokenizer, token))
    spaced = whole.decode().removeprefix(" " if kind == "sentencepiece" else "")
    assert spaced == decode(tokenizer, tokens)


def test_texts_of_tokens() -> None:
    tokenizer = mock.byte_tokenizer()
    tokens = encode(tokenizer, " é")
    assert [token_text(tokenizer, t) for t in tokens] == [" ", "bytes:\\xc3", "bytes:\\xa9"]
    assert token_text(tokenizer, mock.EOS) == "<|end|>"
    words = TOKENIZERS["sentencepiece"]
    assert token_text(words, encode(words, "the")[0]).startswith(" ")
    assert token_bytes(words, words.convert_tokens_to_ids("<0xF0>")) == [0xF0]
    assert token_text(words, 1 << 20) == ""
