"""Query and document as a ranking decoder was trained to read them."""

from __future__ import annotations

from collections.abc import Callable

from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.input.special_text import SpecialText

_PLACES = ("{query}", "{document}")


def framing(loaded: LoadedModel) -> Callable[[str, str], str | list[int]]:
    """What makes one input of a query and a document: the model's template for ranking, else the
    tokenizer's frame of pairs, where a cross-encoder reads them, else a text of two lines."""
    if loaded.rank_template:
        return _Template(loaded).ids
    if not loaded.is_encoder:
        return lambda query, document: f"{query}\n{document}"
    tokenizer = getattr(loaded.tokenizer, "_tokenizer", loaded.tokenizer)
    return lambda query, document: [int(i) for i in tokenizer(query, document)["input_ids"]]


class _Template:
    """A template in which special tokens are its own, and never the client's."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._template, self._tokenizer = loaded.rank_template, loaded.tokenizer
        self._special = SpecialText(loaded.tokenizer)

    def ids(self, query: str, document: str) -> list[int]:
        """Token ids of the filled template."""
        texts = [query, document]
        text = self._filled(texts)
        if self._special.may_be_in(texts):
            masked = self._filled([self._special.masked(part) for part in texts])
            found = self._special.ids(text, masked, add_special_tokens=False)
            if found is not None:
                return found
        return [int(i) for i in self._tokenizer.encode(text, add_special_tokens=False)]

    def _filled(self, texts: list[str]) -> str:
        """Both in their places; a place's name within a query is text."""
        before, _, rest = self._template.partition(_PLACES[0])
        between, _, after = rest.partition(_PLACES[1])
        return f"{before}{texts[0]}{between}{texts[1]}{after}"
