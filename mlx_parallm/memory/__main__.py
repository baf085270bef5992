"""`python -m mlx_parallm.memory FILE...`: texts into a running server's memories."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

_POLL_S = 0.2


def main(argv: list[str] | None = None) -> int:
    """Send files as documents and show how far their memories are.

    Returns:
        The exit code: 0 when all memories are made.
    """
    parser = argparse.ArgumentParser(prog="python -m mlx_parallm.memory", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="texts; a file's name is its id")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--model", help="default: the served one")
    parser.add_argument("--collection", default="default")
    parser.add_argument("--window", type=int)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--api-key", default="")
    given = parser.parse_args(argv)
    try:
        job = _run(given)
    except HTTPError as error:
        return _complain(json.loads(error.read())["error"]["message"])
    except (URLError, OSError, UnicodeDecodeError) as error:
        return _complain(str(error))
    return 0 if job["status"] == "done" else _complain(job["error"]["message"])


def _run(given: argparse.Namespace) -> dict[str, Any]:
    documents = [
        {"id": path.name, "text": path.read_text(encoding="utf-8")} for path in given.files
    ]
    model = given.model or _call(given, "/v1/models")["data"][0]["id"]
    body = {"collection": given.collection, "documents": documents}
    for name in ("window", "stride"):
        if getattr(given, name) is not None:
            body[name] = getattr(given, name)
    job = _call(given, f"/v1/models/{model}/memories", body)
    with tqdm(total=job["total_tokens"], unit="token", desc=given.collection) as bar:
        while job["status"] in ("queued", "running"):
            time.sleep(_POLL_S)
            job = _call(given, f"/v1/memories/jobs/{job['id']}")
            bar.update(job["done_tokens"] - bar.n)
    return job


def _call(given: argparse.Namespace, path: str, body: Any = None) -> dict[str, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {given.api_key}"}
    data = None if body is None else json.dumps(body).encode()
    url = given.url.rstrip("/") + path
    if not url.startswith(("http://", "https://")):
        raise URLError(f"{url} is not an http address")
    with urlopen(Request(url, data, headers)) as answer:  # noqa: S310  checked above
        found: dict[str, Any] = json.load(answer)
    return found


def _complain(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
