"""Answers of /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.engine.sequence import TokenLogprob
from mlx_parallm.server.answer import Event
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.formats import Events, compact, escaped
from mlx_parallm.server.output.logprobs import (
    Offsets,
    TokenNames,
    completion_logprobs,
    prompt_logprobs,
    shown_at_most,
)
from mlx_parallm.server.schemas.completions import CompletionRequest


class CompletionFormat:
    """Makes the response, or the events, of one completion request."""

    def __init__(self, body: CompletionRequest, model: str, tokenizer: Any) -> None:
        self._body = body
        self._top = None if body.logprobs is None else shown_at_most(body.logprobs)
        self._names = TokenNames(tokenizer, body.return_tokens_as_token_ids)
        self._events = Events("cmpl", "text_completion", model, body)
        self._tracks: Sequence[Track] = ()
        self._shown: dict[int, int] = {}
        self._offsets: dict[int, Offsets] = {}
        self._held: dict[int, list[TokenLogprob]] = {}
        self._held_ids: dict[int, list[int]] = {}
        self._told: set[int] = set()

    def follow(self, tracks: Sequence[Track]) -> None:
        """Say which tracks the events are about, before the first one."""
        self._tracks = tracks

    # Whole

    def whole(self, tracks: Sequence[Track]) -> dict[str, Any]:
        """The response; of best_of candidates the n likeliest of each prompt."""
        candidates = self._body.num_candidates
        groups = [tracks[at : at + candidates] for at in range(0, len(tracks), candidates)]
        chosen = [track for group in groups for track in self._best(group)]
        choices = [self._choice(index, track) for index, track in enumerate(chosen)]
        return self._events.whole(choices, tracks)

    def _best(self, group: Sequence[Track]) -> Sequence[Track]:
        if len(group) == self._body.n:
            return group
        return sorted(group, key=lambda track: -track.mean_logprob)[: self._body.n]

    def _choice(self, index: int, track: Track) -> dict[str, Any]:
        prompt = self._echoed(track)
        text = track.text
        choice = {
            "index": index,
            "text": prompt + text,
            "logprobs": None,
            "finish_reason": track.finish_reason,
            "stop_reason": track.stop_reason,
        }
        if self._top is not None:
            choice["logprobs"] = self._whole_logprobs(track, prompt, text, self._top)
        if track.cited is not None:
            choice["citations"] = track.cited
        wanted = self._body.prompt_logprobs
        if wanted is not None:
            choice["prompt_logprobs"] = prompt_logprobs(
                track.prompt_logprobs, self._names, shown_at_most(wanted)
            )
        if self._body.return_token_ids:
            choice["prompt_token_ids"] = track.prompt.ids
            choice["token_ids"] = track.token_ids
        if self._body.return_weight_versions:
            choice["weight_versions"] = track.weight_versions
            choice["base_weight_versions"] = track.base_weight_versions
        return choice

    def _whole_logprobs(self, track: Track, prompt: str, text: str, top: int) -> dict[str, Any]:
        ids: list[int] = []
        entries: list[TokenLogprob | None] = []
        offsets = Offsets()
        if self._body.echo:
            ids += track.prompt.ids
            entries += [_first(entry, top) for entry in track.prompt_logprobs]
        places = [offsets.place(self._names.text(token), prompt) for token in ids]
        own = Offsets(len(prompt))
        places += [
            own.place(self._names.text(token), text, len(prompt)) for token in track.token_ids
        ]
        return completion_logprobs(
            ids + track.token_ids, [*entries, *track.logprobs], self._names, places
        )

    def _echoed(self, track: Track) -> str:
        return (track.prompt.text or "") if self._body.echo else ""

    # Events

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """The events for something new."""
        events = ""
        if track.index not in self._shown:
            self._shown[track.index] = 0
            if self._body.echo:
                events = self._echo_event(track)
        if self._top is not None:
            self._held.setdefault(track.index, []).extend(delta.logprobs or ())
        if self._body.return_token_ids:
            self._held_ids.setdefault(track.index, []).extend(delta.token_ids)
        # A token whose text is held back waits for it, so that each event's tokens and its
        # text belong together.
        if delta.text or delta.finish_reason is not None:
            events += self._text_event(track, delta)
        return events.encode()

    def _echo_event(self, track: Track) -> str:
        text = track.prompt.text or ""
        logprobs = "null"
        if self._top is not None:
            offsets = Offsets()
            places = [offsets.place(self._names.text(id_), text) for id_ in track.prompt.ids]
            logprobs = compact(
                completion_logprobs(
                    track.prompt.ids,
                    [_first(entry, self._top) for entry in track.prompt_logprobs],
                    self._names,
                    places,
                )
            )
        self._shown[track.index] = len(text)
        return self._event(track, text, logprobs, None)

    def _text_event(self, track: Track, delta: TextDelta) -> str:
        logprobs = "null"
        if self._top is not None and self._held[track.index]:
            logprobs = self._held_logprobs(track, delta.text)
        self._shown[track.index] += len(delta.text)
        return self._event(track, delta.text, logprobs, track.finish_reason)

    def _held_logprobs(self, track: Track, text: str) -> str:
        base = self._shown[track.index]
        entries, self._held[track.index] = self._held[track.index], []
        ids = [entry.token_id for entry in entries]
        offsets = self._offsets.setdefault(track.index, Offsets(base))
        places = [offsets.place(self._names.text(token), text, base) for token in ids]
        return compact(completion_logprobs(ids, entries, self._names, places))

    def _event(self, track: Track, text: str, logprobs: str, finish: str | None) -> str:
        # The common case is a token in the middle; every byte of it is made here.
        choice = f'{{"index":{track.index},"text":{escaped(text)},"logprobs":{logprobs},'
        if self._body.return_token_ids:
            choice += self._ids_part(track)
        if finish is None:
            choice += '"finish_reason":null}'
        else:
            cited = "" if track.cited is None else f',"citations":{compact(track.cited)}'
            stop = compact(track.stop_reason)
            if self._body.return_weight_versions:
                base = compact(track.base_weight_versions)
                cited += f',"weight_versions":{compact(track.weight_versions)}'
                cited += f',"base_weight_versions":{base}'
            choice += f'"finish_reason":"{finish}","stop_reason":{stop}{cited}}}'
        return self._events.event(choice, self._tracks)

    def _ids_part(self, track: Track) -> str:
        """The tokens of an event; the choice's first one has the prompt's too."""
        first = track.index not in self._told
        self._told.add(track.index)
        prompt = f'"prompt_token_ids":{compact(track.prompt.ids)},' if first else ""
        return f'{prompt}"token_ids":{compact(self._held_ids.pop(track.index, []))},'

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The events after the last token."""
        return self._events.end(tracks)


def _first(entry: TokenLogprob | None, top: int) -> TokenLogprob | None:
    """A prompt token's entry with no more alternatives than are shown."""
    if entry is None or len(entry.top) <= top:
        return entry
    return replace(entry, top=entry.top[:top])
