"""multipart/form-data, as RFC 7578 has it: fields of text, and one file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mlx_parallm.errors import InvalidRequestError

FORM_BYTES = 1024 * 1024  # of a form beside its file
_MAX_PARTS = 64
_MAX_HEADERS = 4096  # bytes of one part's
_MAX_SHOWN = 100
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


@dataclass(slots=True)
class Form:
    """What a form holds.

    Attributes:
        fields: their texts by name; those whose name ends with [] are lists.
        file: the bytes of its one file; None where there is none.
    """

    fields: dict[str, str | list[str]] = field(default_factory=dict)
    file: bytes | None = None


def parse_form(body: bytes, content_type: str, file_field: str) -> Form:
    """Read a form.

    Args:
        file_field: the name of the only field that is a file.

    Raises:
        InvalidRequestError: it is no such form.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise InvalidRequestError(
            f"Content-Type must be multipart/form-data, not {kind[:_MAX_SHOWN] or 'missing'}."
        )
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise InvalidRequestError("The Content-Type names no boundary.")
    form = Form()
    for part in _parts(body, (found[1] or found[2]).encode("latin-1", "replace")):
        _take(form, part, file_field)
    return form


def _parts(body: bytes, boundary: bytes) -> list[bytes]:
    """What stands between the boundaries: headers and content of each part."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, _MAX_PARTS + 2)
    if len(pieces) > _MAX_PARTS + 2:
        raise InvalidRequestError(f"The form has more than {_MAX_PARTS} fields.")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise InvalidRequestError("The form is cut short: its last boundary is missing.")
    return pieces[1:-1]


def _take(form: Form, part: bytes, file_field: str) -> None:
    end = part.find(b"\r\n\r\n", 0, _MAX_HEADERS)
    names = _names(part[:end]) if end >= 0 else {}
    if "name" not in names:
        raise InvalidRequestError("A part of the form has no name.")
    name, content = names["name"], part[end + 4 :]
    if name == file_field:
        if form.file is not None:
            raise InvalidRequestError("There is more than one file.", param=name)
        form.file = content
        return
    if "filename" in names:
        raise InvalidRequestError("This field is no file.", param=name[:_MAX_SHOWN])
    _take_text(form, name, content)


def _take_text(form: Form, name: str, content: bytes) -> None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("This is no UTF-8.", param=name[:_MAX_SHOWN]) from None
    if name.endswith("[]"):
        entries = form.fields.setdefault(name, [])
        assert isinstance(entries, list)
        entries.append(text)
    elif name in form.fields:
        raise InvalidRequestError("This field is given twice.", param=name[:_MAX_SHOWN])
    else:
        form.fields[name] = text


def _names(headers: bytes) -> dict[str, str]:
    """name and filename of a part's Content-Disposition."""
    for line in headers.decode("utf-8", "replace").split("\r\n"):
        kind, _, value = line.partition(":")
        if kind.strip().lower() == "content-disposition":
            return {
                key.lower(): re.sub(r"\\(.)", r"\1", text).replace("%22", '"')
                for key, text in _PARAMETER.findall(value)
            }
    return {}
