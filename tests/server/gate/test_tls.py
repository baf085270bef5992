"""https with a certificate, clients with certificates of their own, and what is said of neither."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_parallm import cli
from mlx_parallm.server.listener import listen
from mlx_parallm.server.tls import tls_context
from mlx_parallm.settings import Settings, SettingsError
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the keys")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_https(serve: Any, certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    server = serve(ready=False, ssl_certfile=cert, ssl_keyfile=key)
    url = f"https://127.0.0.1:{server.port}"
    with httpx.Client(
        base_url=url, verify=ssl.create_default_context(cafile=cert), timeout=PATIENCE_S
    ) as client:
        body = {"prompt": "x", "max_tokens": 3}
        assert client.post("/v1/completions", json=body).status_code in (200, 503)
        assert client.get("/health").status_code in (200, 503)
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            assert answer.read()
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{server.port}/health", timeout=PATIENCE_S)


def test_clients_need_a_certificate(serve: Any, certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    server = serve(ready=False, ssl_certfile=cert, ssl_keyfile=key, ssl_ca_certs=cert)
    url = f"https://127.0.0.1:{server.port}/health"
    known = ssl.create_default_context(cafile=cert)
    with pytest.raises(httpx.HTTPError):
        httpx.get(url, verify=known, timeout=PATIENCE_S)
    known.load_cert_chain(cert, key)
    assert httpx.get(url, verify=known, timeout=PATIENCE_S).status_code in (200, 503)


def test_what_is_wrong_with_the_files_is_said(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = map(str, certificate)
    broken = tmp_path / "broken.pem"
    broken.write_text("no PEM")
    for settings, told in (
        (Settings(ssl_certfile=cert, ssl_keyfile=str(tmp_path / "none.pem")), "none.pem"),
        (Settings(ssl_certfile=str(broken)), "broken.pem"),
        (Settings(ssl_keyfile=key), "--ssl-keyfile needs --ssl-certfile"),
        (Settings(ssl_certfile=cert, ssl_keyfile=key, ssl_ca_certs=str(broken)), "--ssl-ca-certs"),
    ):
        with pytest.raises(SettingsError, match=told):
            tls_context(settings)
    assert tls_context(Settings()) is None


def test_a_server_without_a_key_on_an_open_address_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for host, keys, warned in (("0.0.0.0", (), 1), ("0.0.0.0", ("k",), 0), ("127.0.0.1", (), 0)):
        caplog.clear()
        with listen(host, 0) as listener:
            assert isinstance(listener, socket.socket)
            cli._warn_of_strangers(Settings(api_key=keys), listener)
        assert len(caplog.records) == warned
