"""Tokenizer, chat template and end tokens: what a model does before and after its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.sequence import FinishReason, Output, SamplingParams
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.tools.checks.report import Finding
from mlx_parallm.tools.checks.texts import SCRIPTS

_USER = {"role": "user", "content": "Where is the harbour?"}
_SYSTEM = {"role": "system", "content": "Answer like a sailor."}
_REPLY = "Down the hill"
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_harbour",
        "description": "Find a harbour.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}


def text_findings(loaded: LoadedModel) -> Iterator[Finding]:
    """One finding each."""
    yield _round_trip(loaded)
    yield from _template(loaded)
    yield _stop_tokens(loaded)


def _round_trip(loaded: LoadedModel) -> Finding:
    """Text -> ids -> text, at once and token by token as streams do it."""
    tokenizer = loaded.tokenizer
    wrong = []
    for script, text in SCRIPTS.items():
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole = tokenizer.decode(ids)
        pieces = _streamed(loaded, ids)
        if whole.strip() != text.strip() or pieces.strip() != text.strip():
            wrong.append(script)
    text = f"{len(SCRIPTS) - len(wrong)} of {len(SCRIPTS)} scripts come back"
    if wrong:
        text += f"; not {', '.join(wrong)}"
    # A vocabulary without some script is a property of the model; Latin it must have.
    return Finding("tokenizer", text, "Latin" not in wrong, {"not_restored": wrong})


def _streamed(loaded: LoadedModel, ids: list[int]) -> str:
    """The text of tokens that come one at a time."""
    stream = TextStream(loaded.tokenizer, SamplingParams())
    last = len(ids) - 1
    for place, token in enumerate(ids):
        reason = FinishReason.LENGTH if place == last else None
        stream.push(Output(0, [token], finish_reason=reason))
    return stream.text


def _template(loaded: LoadedModel) -> Iterator[Finding]:
    if not getattr(loaded.tokenizer, "has_chat_template", False):
        yield Finding("chat template", "none: this is a model for completions")
        return
    plain = _render(loaded, [_USER])
    fine = _USER["content"] in plain
    yield Finding("chat template", "renders a user's turn" if fine else plain[:80], fine)
    system = _render(loaded, [_SYSTEM, _USER])
    tools = _render(loaded, [_USER], tools=[_TOOL])
    thinking, thoughtless = (_render(loaded, [_USER], enable_thinking=on) for on in (True, False))
    knows = {
        "system": _SYSTEM["content"] in system,
        "tools": "find_harbour" in tools,
        "thinking": thinking != thoughtless,
    }
    text = ", ".join(f"{name}: {'yes' if known else 'no'}" for name, known in knows.items())
    yield Finding("  it knows", text, values=knows)


def _render(loaded: LoadedModel, messages: list[dict[str, str]], **more: Any) -> str:
    """The prompt, or the template's complaint."""
    try:
        return str(
            loaded.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **more
            )
        )
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's
        return f"{type(error).__name__}: {error}"


def _stop_tokens(loaded: LoadedModel) -> Finding:
    """Whether there are end tokens, and the one that ends a turn is among them."""
    ends = sorted(loaded.eos_token_ids)
    names = ", ".join(repr(loaded.tokenizer.convert_ids_to_tokens(i)) for i in ends)
    if not ends or ends[-1] >= loaded.vocab_size:
        return Finding("stop tokens", f"no usable ones: {ends}", False, {"ids": ends})
    turn = _turn_end(loaded)
    if turn is not None and turn not in ends:
        token = loaded.tokenizer.convert_ids_to_tokens(turn)
        text = f"{names}; but the template ends a turn with {token!r}, so that chats may run on"
        return Finding("stop tokens", text, False, {"ids": ends, "turn": turn})
    return Finding("stop tokens", names, True, {"ids": ends, "turn": turn})


def _turn_end(loaded: LoadedModel) -> int | None:
    """The special token that follows an answer in the template; None where there is none."""
    if not getattr(loaded.tokenizer, "has_chat_template", False):
        return None
    try:
        said = str(
            loaded.tokenizer.apply_chat_template(
                [_USER, {"role": "assistant", "content": _REPLY}], tokenize=False
            )
        )
    except Exception:  # noqa: BLE001 - it was reported above
        return None
    after = loaded.tokenizer.encode(said.rpartition(_REPLY)[2], add_special_tokens=False)
    added = loaded.tokenizer.added_tokens_decoder
    return next((int(i) for i in after if i in added and added[i].special), None)
