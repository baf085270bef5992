"""Chat templates are programs of whoever made the checkpoint: they run in a sandbox."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from mlx_parallm.models.loader import LoadedModel
from tests.conftest import tiny_llama
from tests.faults.conftest import ServeFactory

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
HOSTILE = {
    "runs a command": "{{ cycler.__init__.__globals__.os.popen('touch FILE').read() }}",
    "looks for classes": "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
    "reads a file": "{% include 'FILE' %}",
    "changes what it was given": "{{ messages.append(messages[0]) }}{{ messages | length }}",
    "counts for ever": "{% for i in range(10 ** 12) %}x{% endfor %}",
    "divides by zero": "{{ 1 // 0 }}",
}


def with_template(template: str) -> LoadedModel:
    loaded = tiny_llama()
    loaded.tokenizer._tokenizer.chat_template = template
    return loaded


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_does_no_harm(serve: ServeFactory, tmp_path: Path, name: str) -> None:
    file = tmp_path / "made"
    served = serve(partial(with_template, HOSTILE[name].replace("FILE", str(file))))
    for stream in (False, True):
        answer = served.post(CHAT, messages=MESSAGES, max_tokens=4, stream=stream)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
        assert "Traceback" not in answer.text and str(tmp_path) not in answer.text
    assert not file.exists()
    assert served.ok("/v1/completions", prompt="well", max_tokens=4)
