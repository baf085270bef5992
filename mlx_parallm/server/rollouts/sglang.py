"""SGLang's /generate: its requests as completions of ours, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_parallm.engine.sequence import TokenLogprob
from mlx_parallm.server.flow.generation import Generation, Track
from mlx_parallm.server.output.logprobs import TokenNames, finite, shown_at_most
from mlx_parallm.server.rollouts.token_logprobs import spans
from mlx_parallm.server.schemas.rollouts.sglang import SglangGenerateRequest

NAMES = {
    "model": "lora_path",
    "max_tokens": "sampling_params.max_new_tokens",
    "min_tokens": "sampling_params.min_new_tokens",
    "logprobs": "top_logprobs_num",
    "prompt_logprobs": "top_logprobs_num",
    "json_schema": "sampling_params.json_schema",
    "structured_outputs": "sampling_params.regex",
    "grammar": "sampling_params.ebnf",
    "logit_bias": "sampling_params.logit_bias",
    "stop_token_ids": "sampling_params.stop_token_ids",
}
_SAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "json_schema",
)


def names_of(body: SglangGenerateRequest) -> dict[str, str]:
    """Our field -> SGLang's, for errors."""
    return NAMES | {"prompt": "text" if body.text else "input_ids"}


def completion_fields(body: SglangGenerateRequest) -> dict[str, Any]:
    """The request as a completion of ours."""
    sampling = body.sampling_params
    fields = {name: getattr(sampling, name) for name in _SAME} | {
        "model": body.lora_path,
        "prompt": body.text or body.input_ids,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "seed": sampling.sampling_seed,
        "include_stop_str_in_output": sampling.no_stop_trim,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()},
        "logprobs_mode": "processed_logprobs",
    }
    if sampling.regex is not None:
        fields["structured_outputs"] = {"regex": sampling.regex}
    if sampling.ebnf is not None:
        fields["grammar"] = sampling.ebnf
    if body.return_logprob:
        fields["logprobs"] = body.top_logprobs_num
        if body.logprob_start_len >= 0:
            fields["prompt_logprobs"] = body.top_logprobs_num
    return fields


class SglangFormat:
    """Makes the answer of one request: an object, or a list of them for several samples."""

    def __init__(self, body: SglangGenerateRequest, request_id: str, tokenizer: Any) -> None:
        self._body = body
        self._id = body.rid or request_id
        self._top = shown_at_most(body.top_logprobs_num)
        self._names = TokenNames(tokenizer)

    def whole(self, generation: Generation) -> Any:
        """The answer."""
        answers = [self._sample(generation, track) for track in generation.tracks]
        return answers if len(answers) > 1 else answers[0]

    def _sample(self, generation: Generation, track: Track) -> dict[str, Any]:
        several = len(generation.tracks) > 1
        meta: dict[str, Any] = {
            "id": f"{self._id}-{track.index}" if several else self._id,
            "finish_reason": _finish(track),
            "prompt_tokens": len(track.prompt.ids),
            "completion_tokens": len(track.token_ids),
            "cached_tokens": track.cached_tokens,
            "weight_versions": spans(track.weight_versions),
            "e2e_latency": (track.ended_at or track.begun_at) - track.begun_at,
        }
        if track.weight_versions:
            meta["weight_version"] = str(track.weight_versions[-1])
        if self._body.return_logprob:
            meta |= self._logprobs(track)
        return {"text": track.text, "output_ids": track.token_ids, "meta_info": meta}

    def _logprobs(self, track: Track) -> dict[str, Any]:
        first = self._body.logprob_start_len
        before = track.prompt_logprobs[first:] if first >= 0 else []
        ids = track.prompt.ids[len(track.prompt.ids) - len(before) :]
        found: dict[str, Any] = {
            "input_token_logprobs": [
                self._token(token, entry) for token, entry in zip(ids, before, strict=True)
            ],
            "output_token_logprobs": [self._token(e.token_id, e) for e in track.logprobs],
        }
        if self._top:
            found["input_top_logprobs"] = [self._alternatives(entry) for entry in before]
            found["output_top_logprobs"] = [self._alternatives(entry) for entry in track.logprobs]
        return found

    def _token(self, token: int, entry: TokenLogprob | None) -> list[Any]:
        return self._triple(token, None if entry is None else finite(entry.logprob))

    def _alternatives(self, entry: TokenLogprob | None) -> list[Any] | None:
        if entry is None:
            return None
        return [self._triple(token, finite(value)) for token, value in entry.top[: self._top]]

    def _triple(self, token: int, value: float | None) -> list[Any]:
        """SGLang's (log-probability, token, text or null)."""
        text = self._names.text(token) if self._body.return_text_in_logprobs else None
        return [value, token, text]


def _finish(track: Track) -> dict[str, Any]:
    if track.finish_reason == "length":
        return {"type": "length", "length": len(track.token_ids)}
    matched = track.stop_reason
    if matched is None and track.token_ids:
        matched = track.token_ids[-1]
    return {"type": track.finish_reason, "matched": matched}


def prompts_of(tracks: Sequence[Track]) -> list[list[int]]:
    """The prompts of tracks, each once, in order."""
    return list({id(track.prompt): track.prompt.ids for track in tracks}.values())
