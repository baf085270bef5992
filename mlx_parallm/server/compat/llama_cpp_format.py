"""Answers of llama.cpp's /completion, whole or as events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.engine.sequence import TokenLogprob
from mlx_parallm.server.answer import Event
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.input.prompts import Prompts
from mlx_parallm.server.output.formats import compact
from mlx_parallm.server.output.logprobs import TokenNames, chat_logprobs
from mlx_parallm.server.schemas.compat.llama_cpp import LlamaCompletionRequest

# What a request asks for and not how it is sampled.
_NOT_SETTINGS = {"prompt", "model", "response_fields"}


class LlamaFormat:
    """Makes the response, or the events, of one request.

    Args:
        model: the served name.
    """

    def __init__(self, body: LlamaCompletionRequest, model: str, prompts: Prompts) -> None:
        self._body = body
        self._model = model
        self._prompts = prompts
        self._names = TokenNames(prompts.tokenizer)

    # Whole

    def whole(self, tracks: Sequence[Track]) -> Any:
        """The response; a list of them for several sequences."""
        answers = [self._whole(track) for track in tracks]
        return answers[0] if len(answers) == 1 else answers

    def _whole(self, track: Track) -> dict[str, Any]:
        tokens = track.token_ids if self._body.return_tokens else []
        answer = self._final(track, track.text, tokens)
        if self._body.n_probs:
            answer["completion_probabilities"] = self._probabilities(track.logprobs)
        return _selected(answer, self._body.response_fields)

    # Events

    def follow(self, tracks: Sequence[Track]) -> None:
        """Nothing to prepare."""

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """An event with the new text and tokens, and the last one of a track that has ended."""
        events = b""
        if delta.text or delta.token_ids:
            piece = {
                "index": track.index,
                "content": delta.text,
                "tokens": delta.token_ids,
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": len(track.token_ids),
                "tokens_evaluated": len(track.prompt.ids),
            }
            if self._body.n_probs:
                piece["completion_probabilities"] = self._probabilities(delta.logprobs or ())
            events = _event(piece)
        if track.finish_reason is not None:
            final = self._final(track, "", [])
            events += _event(_selected(final, self._body.response_fields))
        return events

    def end(self, tracks: Sequence[Track]) -> bytes:
        """Nothing: each track's last event says that it has stopped."""
        return b""

    def _final(self, track: Track, text: str, tokens: Sequence[int]) -> dict[str, Any]:
        stop_type, word = _stopped(track)
        return {
            "index": track.index,
            "content": text,
            "tokens": list(tokens),
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": len(track.token_ids),
            "tokens_evaluated": len(track.prompt.ids),
            "generation_settings": self._settings(track),
            "prompt": self._prompts.text_of(track.prompt.ids, False),
            "has_new_line": "\n" in track.text,
            "truncated": False,
            "stop_type": stop_type,
            "stopping_word": word,
            "tokens_cached": track.cached_tokens,
            "timings": _timings(track),
        }

    def _settings(self, track: Track) -> dict[str, Any]:
        settings = self._body.model_dump(exclude=_NOT_SETTINGS)
        params = track.sequence.params
        context = {"n_ctx": self._prompts.max_model_len, "model": self._model}
        return {**settings, "n_predict": params.max_tokens, "seed": params.seed, **context}

    def _probabilities(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        shown = chat_logprobs(entries, self._names, self._body.n_probs)
        for one, entry in zip(shown, entries, strict=True):
            one["id"] = entry.token_id
            for other, (token_id, _) in zip(one["top_logprobs"], entry.top, strict=False):
                other["id"] = token_id
        return shown


def _stopped(track: Track) -> tuple[str, str]:
    """stop_type and stopping_word."""
    if track.finish_reason == "length":
        return "limit", ""
    if isinstance(track.stop_reason, str):
        return "word", track.stop_reason
    return "eos", ""


def _timings(track: Track) -> dict[str, float]:
    prompt, predicted = len(track.prompt.ids) - track.cached_tokens, len(track.token_ids)
    prefill, decode = 1e3 * track.prefill_s, 1e3 * track.decode_s
    return {
        "cache_n": track.cached_tokens,
        "prompt_n": prompt,
        "prompt_ms": prefill,
        "prompt_per_token_ms": _ratio(prefill, prompt),
        "prompt_per_second": _ratio(1e3 * prompt, prefill),
        "predicted_n": predicted,
        "predicted_ms": decode,
        "predicted_per_token_ms": _ratio(decode, predicted),
        "predicted_per_second": _ratio(1e3 * predicted, decode),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _selected(answer: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Only these fields; "a/b" is shown as b; those that are not there are left out."""
    if not fields:
        return answer
    shown: dict[str, Any] = {}
    for field in fields:
        value: Any = answer
        for name in field.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            shown[field.rsplit("/", 1)[-1]] = value
    return shown


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {compact(value)}\n\n".encode()
