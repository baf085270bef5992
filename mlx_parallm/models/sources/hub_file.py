"""One file of a hub, into the cache: resumed after a cut, and checked before it counts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status

_CHUNK = 1 << 20
_TRIES = 5  # in a row that brought not one byte
_LONGEST_WAIT_S = 60.0
_RETRIED = (408, 429, 500, 502, 503, 504)

Progress = Callable[[int], None]


class DamagedFileError(OSError):
    """What came is not what the hub says that the file is; the message is one sentence."""


@dataclass(frozen=True)
class HubFile:
    """A file as the hub describes it.

    Attributes:
        name: path in the repository; url: where it lies.
        size: in bytes.
        digest: SHA-256 of large files, git's SHA-1 of the others; also its name in the cache.
    """

    name: str
    url: str
    size: int
    digest: str


def fetch(file: HubFile, blobs: Path, progress: Progress) -> Path:
    """Bring a file into the folder `blobs` of a hub cache, under its digest.

    A part that an earlier run left is continued. The file has its name there only once its size
    and checksum are right.

    Args:
        progress: told of each run of bytes; less than 0 where some have to come again.

    Raises:
        DamagedFileError: the size or the checksum is wrong.
        OSError, httpx's errors, HfHubHTTPError: it cannot be had, after several tries.
    """
    blobs.mkdir(parents=True, exist_ok=True)
    done, part = blobs / file.digest, blobs / f"{file.digest}.part"
    with WeakFileLock(blobs / f"{file.digest}.part.lock"):
        if not done.exists():
            progress(part.stat().st_size if part.exists() else 0)
            _fetch_all(file, part, progress)
            _check(file, part)
            part.rename(done)
    (blobs / f"{file.digest}.part.lock").unlink(missing_ok=True)
    return done


def _fetch_all(file: HubFile, part: Path, progress: Progress) -> None:
    """Until the part is whole: each try goes on where the last one ended."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(file, part, progress)
            return
        except Exception as error:
            grown = part.exists() and part.stat().st_size > before
            failures = 0 if grown else failures + 1
            if isinstance(error, DamagedFileError) or failures >= _TRIES or not _passes(error):
                raise
            time.sleep(_wait_s(error, failures))


def _fetch_rest(file: HubFile, part: Path, progress: Progress) -> None:
    start = part.stat().st_size if part.exists() else 0
    if start == file.size and part.exists():
        return
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", file.url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        if response.status_code == 416:  # there is no such range: the part is too long
            _start_over(part, progress)
            raise DamagedFileError(f"{file.name}: the hub's file is shorter than it says")
        hf_raise_for_status(response)
        if start and response.status_code != 206:  # a mirror that knows no ranges
            _start_over(part, progress)
        _append(response, part, progress)
    size = part.stat().st_size
    if size < file.size:
        raise ConnectionError(f"{file.name}: the connection ended at {size} of {file.size} bytes")


def _append(response: Any, part: Path, progress: Progress) -> None:
    with part.open("ab") as out:
        for chunk in response.iter_bytes():  # as they come: a cut loses none
            out.write(chunk)
            progress(len(chunk))


def _start_over(part: Path, progress: Progress) -> None:
    progress(-part.stat().st_size)
    part.unlink()


def _passes(error: Exception) -> bool:
    """Whether a later try may do better."""
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in _RETRIED
    # httpx's errors of transport, under either of the names that the hub's client has.
    transport = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    return transport or isinstance(error, ConnectionError | TimeoutError)


def _wait_s(error: Exception, failures: int) -> float:
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    if asked.isdigit():
        return min(float(asked), _LONGEST_WAIT_S)
    return 0.5 * float(2**failures) - 0.5


def _check(file: HubFile, part: Path) -> None:
    size = part.stat().st_size
    right = size == file.size and checksum(part, file.digest) == file.digest
    if right:
        return
    part.unlink()
    reason = (
        f"has {size} bytes instead of {file.size}"
        if size != file.size
        else "does not have the checksum that the hub says"
    )
    raise DamagedFileError(f"{file.name} {reason}; it was thrown away, run this again")


def checksum(path: Path, like: str) -> str:
    """The digest of a file: SHA-256, or git's SHA-1 of a blob, by the length of `like`."""
    if len(like) == 40:
        found = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
