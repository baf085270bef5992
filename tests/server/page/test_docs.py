"""/docs and /redoc without a network, and a document with examples that are right."""

from __future__ import annotations

import gzip
import re
from typing import Any

import pytest

from mlx_parallm.server.examples import EXAMPLES
from mlx_parallm.server.main import create_app
from mlx_parallm.server.openapi import BODIES
from mlx_parallm.settings import Settings


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_load_nothing_from_elsewhere(serve: Any, path: str) -> None:
    # Behind a key too: a browser sends none.
    server = serve(api_key=("secret",), ready=False)
    page = server.http.get(path)
    assert page.status_code == 200
    assert "//" not in page.text.replace("https://github.com/Redocly/redoc", "")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    files = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert files
    for file in files:
        packed = server.http.get(file)
        assert packed.status_code == 200
        assert packed.headers["content-encoding"] == "gzip"
        plain = server.http.get(file, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == packed.content and len(plain.content) > 100_000
        kind = "text/css" if file.endswith("css") else "text/javascript"
        assert plain.headers["content-type"].startswith(kind)


@pytest.mark.parametrize("name", ["nope.js", "README.md", "..%2f..%2fmain.py", "swagger-ui.css.gz"])
def test_only_the_pages_files_are_served(server: Any, name: str) -> None:
    response = server.http.get(f"/docs/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("model", BODIES, ids=lambda model: model.__name__)
def test_every_body_has_an_example_that_its_schema_takes(model: Any) -> None:
    example = EXAMPLES[model.__name__]
    assert model.model_validate(example)
    schema = create_app(Settings()).openapi()["components"]["schemas"][model.__name__]
    assert schema["examples"] == [example]


def test_the_package_is_lean() -> None:
    from mlx_parallm.server.routes.docs import _FOLDER

    assert sum(file.stat().st_size for file in _FOLDER.iterdir()) < 1_000_000
    assert {"swagger-ui.LICENSE", "redoc.LICENSE"} <= {file.name for file in _FOLDER.iterdir()}
    for file in _FOLDER.glob("*.gz"):
        assert gzip.decompress(file.read_bytes())
