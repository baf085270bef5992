"""A disk that is full under prefixes, memories and responses: answers go on, what cannot be
kept is said, and all is well again once there is room."""

from __future__ import annotations

from pathlib import Path

from tests.memory.test_full_disk import on_a_small_disk

_SCRIPT = """
import contextlib, sys
from pathlib import Path
from mlx_parallm.engine.engine import Engine, EngineConfig
from tests.conftest import assert_no_leaks, tiny_llama
from tests.server.conftest import Served, Settings, create_app

folder = Path(sys.argv[1])
engine = Engine(tiny_llama, EngineConfig(
    prefix_cache_dir=folder / "prefixes", prefix_cache_memory=1 << 17, prefix_cache_disk=1 << 30))
settings = Settings(served_model_name=("tiny",), memory_dir=str(folder / "memories"),
                    response_store=str(folder / "responses.db"), log_level="error")
server = Served(create_app(settings, engine), engine, 0.5)

def texts():
    prompts = [f"number {i}, " + "long enough for some pages. " * 8 for i in range(20)]
    return [server.ok("/v1/completions", prompt=prompt, max_tokens=6, temperature=0)
            ["choices"][0]["text"] for prompt in prompts]

def response():
    return server.ok("/v1/responses", input="keep this", max_output_tokens=4)["id"]

try:
    server.wait_ready()
    kept, right = response(), texts()
    with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as ballast:
        for size in (4096, 64, 1):
            with contextlib.suppress(OSError):
                while ballast.write(b"x" * size):
                    pass
    assert texts() == right
    lost = response()
    assert server.http.get(f"/v1/responses/{lost}").status_code == 200
    refused = server.http.delete(f"/v1/responses/{kept}")
    assert refused.status_code in (200, 503), refused.text
    job = server.post("/v1/models/tiny/memories", collection="c", text="a text " * 90)
    assert job.status_code == 503, job.text
    assert server.http.get("/health").status_code == 200
    (folder / "ballast").unlink()
    assert texts() == right
    for one in (lost, response()):
        assert server.http.get(f"/v1/responses/{one}").status_code == 200
        assert server.http.delete(f"/v1/responses/{one}").status_code == 200
    assert server.post("/v1/models/tiny/memories", collection="c", text="a text").status_code == 202
    assert_no_leaks(engine, 120)
finally:
    server.stop()
    server.join()
"""


def test_everything_that_keeps_something(tmp_path: Path) -> None:
    on_a_small_disk(tmp_path, _SCRIPT)
