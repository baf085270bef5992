"""Models of a hub: which files are needed, what is there already, and why one does not come.

huggingface_hub keeps the cache and knows HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE; its
downloads of files begin anew after an interrupted run, so that ours are in hub_file.py.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    get_token,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.sources.hub_file import DamagedFileError, HubFile, fetch
from mlx_parallm.models.sources.progress import Bars

TORCH_FILE = "pytorch_model.bin"
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja")
_WORKERS = 4
_SPARE = 64 * 1024**2  # bytes that stay free on the disk


def pull(hub_id: str, revision: str | None = None, include: Sequence[str] = ()) -> Path:
    """Bring a model's files into the hub's cache, unless they are there.

    Args:
        hub_id: "owner/name"; revision: a branch, tag or commit.
        include: patterns of names, such as "*.gguf"; what a model needs when empty.

    Returns:
        The folder of this revision.

    Raises:
        ModelLoadError: in one sentence, why the model cannot be had, and what helps.
    """
    endpoint = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return _from_cache(hub_id, revision, include, "HF_HUB_OFFLINE is set")
    try:
        info = HfApi(endpoint=endpoint).model_info(hub_id, revision=revision, files_metadata=True)
    except (HfHubHTTPError, HFValidationError) as error:
        return _from_cache(hub_id, revision, include, explain(hub_id, error))
    # No connection, under the name of whichever HTTP client the hub's package has.
    except Exception as error:  # noqa: BLE001
        reason = f"{endpoint} cannot be reached ({_sentence(error)})"
        return _from_cache(hub_id, revision, include, reason)
    try:
        return _complete(hub_id, revision, info, include)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(f"{hub_id}: {explain(hub_id, error)}") from error


def _complete(hub_id: str, revision: str | None, info: Any, include: Sequence[str]) -> Path:
    """Fetch what the cache lacks, then let huggingface_hub name it there."""
    names = _wanted([file.rfilename for file in info.siblings or []], include)
    _check_there_is_one(hub_id, names, [file.rfilename for file in info.siblings or []], include)
    storage = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    wanted = [file for file in info.siblings or [] if file.rfilename in names]
    missing = [
        described
        for file in wanted
        if not isinstance(try_to_load_from_cache(hub_id, file.rfilename, revision=info.sha), str)
        and not (
            storage / "blobs" / (described := _describe(hub_id, info.sha, file)).digest
        ).exists()
    ]
    if missing:
        _check_space(hub_id, missing, storage / "blobs")
        _fetch(hub_id, missing, storage / "blobs")
    with Bars.silent():
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=names, endpoint=constants.ENDPOINT
        )
    return Path(folder)


def _wanted(names: list[str], include: Sequence[str]) -> list[str]:
    """The names that fit; PyTorch's file only where there is nothing better."""
    patterns = tuple(include) or MODEL_FILES
    found = [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)]
    if not include and TORCH_FILE in names and not fnmatch.filter(found, "*.safetensors"):
        found.append(TORCH_FILE)
    return found


def _check_there_is_one(
    hub_id: str, wanted: list[str], names: list[str], include: Sequence[str]
) -> None:
    ggufs = ", ".join(fnmatch.filter(names, "*.gguf"))
    if include and not wanted:
        gguf = f"; its GGUF files are: {ggufs}" if ggufs else ""
        raise ModelLoadError(f"{hub_id} has no file like {', '.join(include)}{gguf}")
    weights = TORCH_FILE in wanted or fnmatch.filter(wanted, "*.safetensors")
    if not include and not weights:
        advice = f", but GGUF files: add one's kind, {hub_id}:Q8_0; there are: {ggufs}"
        raise ModelLoadError(f"{hub_id} has no *.safetensors weights{advice if ggufs else ''}")


def _describe(hub_id: str, commit: str, file: Any) -> HubFile:
    url = hf_hub_url(hub_id, file.rfilename, revision=commit, endpoint=constants.ENDPOINT)
    if file.lfs is not None:
        return HubFile(file.rfilename, url, int(file.lfs.size), str(file.lfs.sha256))
    return HubFile(file.rfilename, url, int(file.size or 0), str(file.blob_id))


def _check_space(hub_id: str, files: Sequence[HubFile], blobs: Path) -> None:
    parts = [blobs / f"{file.digest}.part" for file in files]
    there = sum(part.stat().st_size for part in parts if part.exists())
    needed = sum(file.size for file in files) - there
    folder = next(parent for parent in blobs.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise ModelLoadError(
            f"{hub_id} needs {needed / 1e9:.2f} GB more and {folder} has {free / 1e9:.2f} GB free; "
            "make room, or name a folder on another disk with HF_HOME"
        )


def _fetch(hub_id: str, files: Sequence[HubFile], blobs: Path) -> None:
    with (
        Bars(hub_id, {file.name: file.size for file in files}) as bars,
        ThreadPoolExecutor(_WORKERS) as workers,
    ):
        jobs = [workers.submit(fetch, file, blobs, bars.of(file.name)) for file in files]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            bars.stop()
            workers.shutdown(wait=False, cancel_futures=True)
            raise


def _from_cache(hub_id: str, revision: str | None, include: Sequence[str], reason: str) -> Path:
    """What an earlier run left, where the hub cannot be asked."""
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=list(include or MODEL_FILES),
            local_files_only=True,
        )
    except Exception as error:
        there = "" if "cach" in reason else ", and it is not in the cache"
        raise ModelLoadError(f"{hub_id}: {reason}{there}") from error
    return Path(folder)


def explain(hub_id: str, error: BaseException) -> str:
    """One sentence for the user: what is wrong, and what to do."""
    page = f"{constants.ENDPOINT}/{hub_id}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        signed_in = (
            "" if get_token() else ", then make a token and set HF_TOKEN (or `hf auth login`)"
        )
        return (
            f"it is gated: open {page}, sign in and click 'Agree and access repository'{signed_in}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"there is no such revision; see {page}/tree/main"
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        if get_token():
            return f"{constants.ENDPOINT} has no such model, or HF_TOKEN may not see it"
        return (
            f"{constants.ENDPOINT} has no such model, or it is private: "
            "set HF_TOKEN (or `hf auth login`)"
        )
    if status == 403:
        return f"the hub forbids it (403): look at {page}, and whether HF_TOKEN may read it"
    if status == 429:
        return (
            "the hub asks to slow down (429): wait some minutes; with HF_TOKEN the limit is higher"
        )
    if isinstance(error, DamagedFileError):
        return str(error)
    return f"the hub did not give it: {_sentence(error)}"


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no further details'}"
