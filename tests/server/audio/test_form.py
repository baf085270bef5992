"""Forms as httpx writes them."""

from __future__ import annotations

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.server.audio.form import parse_form

_NAMES = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\\\x7f"), min_size=1
)


@given(
    st.dictionaries(
        _NAMES.filter(lambda name: not name.endswith("[]") and name != "file"),
        st.text(st.characters(codec="utf-8")),
        max_size=5,
    ),
    st.lists(st.text(st.characters(codec="utf-8")), max_size=3),
    st.binary(max_size=300),
)
@settings(max_examples=60, deadline=None)
def test_what_httpx_writes_is_read(fields: dict[str, str], many: list[str], file: bytes) -> None:
    data: dict[str, object] = {**fields, "many[]": many}
    request = httpx.Request("POST", "http://x", data=data, files={"file": ('a "b".wav', file)})
    form = parse_form(request.read(), request.headers["content-type"], "file")
    assert form.file == file
    assert form.fields.pop("many[]", []) == many
    assert form.fields == fields
