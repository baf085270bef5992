"""Where an operator's files lie is nobody else's business."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.server.admin import without_folders
from tests.server.conftest import ParrotEngine
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/models/tiny: there is no config.json", "tiny: there is no config.json"),
        ("'~/models/a.gguf' is not readable", "'a.gguf' is not readable"),
        ("/a: no; /b/c: no", "a: no; c: no"),
        ("owner/name at https://hub.example/owner/name", None),
        ("1/2 of models/tiny", None),
        ("bundled", None),
    ],
)
def test_folders_are_left_out(text: str, shown: str | None) -> None:
    assert without_folders(text) == (text if shown is None else shown)


def test_the_admin_key_shows_where_a_model_lies(serve: Any, tmp_path: Path) -> None:
    place = str(tmp_path / "tiny")
    server = serve(model_path=place, admin_key=("boss",))
    for path in ("/v1/models", "/v1/models/parrot"):
        others = server.http.get(path)
        assert str(tmp_path) not in others.text
        card = others.json()
        card = card["data"][0] if "data" in card else card
        assert card["path_or_hf_id"] == card["root"] == "tiny"
        boss = server.http.get(path, headers={"x-admin-key": "boss"}).json()
        assert (boss["data"][0] if "data" in boss else boss)["path_or_hf_id"] == place


def test_without_one_this_machine_is_shown_it(serve: Any, tmp_path: Path) -> None:
    server = serve(model_path=str(tmp_path / "tiny"))
    card = server.http.get("/v1/models").json()["data"][0]
    assert card["path_or_hf_id"] == str(tmp_path / "tiny")


def test_hub_ids_are_shown_to_everybody(serve: Any) -> None:
    server = serve(model_path="owner/name", admin_key=("boss",))
    assert server.http.get("/v1/models").json()["data"][0]["path_or_hf_id"] == "owner/name"


def test_a_failure_to_load_names_no_folder(serve: Any) -> None:
    engine = ParrotEngine(load_error="/srv/models/tiny: there is no config.json in this folder")
    server = serve(engine, ready=False)
    wait_until(lambda: server.http.get("/health").json()["status"] == "stopped")
    assert server.http.get("/health").json()["reason"].startswith("tiny: there is no config.json")
    answer = server.post("/v1/completions", prompt="x")
    assert answer.status_code == 503 and "/srv" not in answer.text
