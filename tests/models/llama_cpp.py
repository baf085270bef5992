"""llama.cpp's server, from the wheel xllamacpp, as an oracle; a process of its own."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from mlx_parallm.models.gguf.reader import GgufFile
from tests.waiting import PATIENCE_S

_SERVER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], 0, ["127.0.0.1"]
params.n_parallel, params.n_ctx, params.warmup = 8, 8 * int(sys.argv[2]), False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.embedding = sys.argv[3] in ("encoder", "ranker")
if sys.argv[3] == "ranker":
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
params.mmproj.path = sys.argv[4]
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
"""


Continuation = tuple[list[int], list[dict[int, float]]]


class LlamaCpp:
    """A running server."""

    def __init__(self, client: httpx.Client) -> None:
        self._http = client

    def _post(self, path: str, **body: Any) -> Any:
        return self._http.post(path, json=body).raise_for_status().json()

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, as a user's: no special tokens are found in it."""
        return list(
            self._post("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]
        )

    def embedding(self, ids: Sequence[int]) -> list[float]:
        """Of a text, of length 1, as the file's pooling makes it."""
        return list(self._post("/v1/embeddings", input=list(ids))["data"][0]["embedding"])

    def ranking(self, query: str, documents: Sequence[str]) -> list[float]:
        """The head's figure for each document; of a file that was served to rank."""
        found = self._post("/v1/rerank", query=query, documents=list(documents))["results"]
        scores = {row["index"]: float(row["relevance_score"]) for row in found}
        return [scores[i] for i in range(len(documents))]

    def template(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the file's template writes it."""
        return str(self._post("/apply-template", messages=messages)["prompt"])

    def continue_picture(self, text: str, png: bytes, count: int) -> Continuation:
        """The same after a text in which <__media__> stands for the picture."""
        marker = self._http.get("/props").raise_for_status().json()["media_marker"]
        shown = base64.b64encode(png).decode()
        text = text.replace("<__media__>", marker)
        return self._continue({"prompt_string": text, "multimodal_data": [shown]}, count)

    def continue_greedily(self, prompt: Sequence[int], count: int) -> Continuation:
        """Tokens, and at each position the log-probabilities of the five likeliest."""
        return self._continue(list(prompt), count)

    def _continue(self, prompt: Any, count: int) -> Continuation:
        found = self._post(
            "/completion",
            prompt=prompt,
            n_predict=count,
            n_probs=5,
            temperature=0,
            return_tokens=True,
        )
        # A token that leaves a character unfinished has no entry of its own.
        steps = iter(found["completion_probabilities"])
        step = next(steps)
        tops: list[dict[int, float]] = []
        for token in found["tokens"]:
            known = step["id"] == token
            tops.append({r["id"]: r["logprob"] for r in step["top_logprobs"]} if known else {})
            step = next(steps, step) if known else step
        return list(found["tokens"]), tops


@contextmanager
def serve(
    file: Path,
    context: int = 128,
    *,
    encoder: bool = False,
    ranker: bool = False,
    mmproj: Path | None = None,
) -> Iterator[LlamaCpp]:
    """The server with one model; the test is skipped where the wheel is not installed.
    `mmproj`: what the model sees with."""
    pytest.importorskip("xllamacpp", reason="the oracle, llama.cpp's wheel, is not installed")
    task = "ranker" if ranker else "encoder" if encoder else "text"
    command = [sys.executable, "-c", _SERVER, str(file), str(context), task, str(mmproj or "")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if line.startswith("listening")), "")
            assert line, f"llama.cpp does not load {file.name}"
            with httpx.Client(
                base_url=line.split()[1], timeout=PATIENCE_S, trust_env=False
            ) as client:
                yield LlamaCpp(client)
        finally:
            process.kill()


def tensors(file: Path) -> list[gguf.ReaderTensor]:
    """As they are stored."""
    return list(gguf.GGUFReader(file).tensors)


def unpacked(file: Path, out: Path) -> Path:
    """A copy of a file in which every weight is float32."""
    reader = GgufFile(file)._readers[0]  # quicker than its library's
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    copy_metadata(file, writer)
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape(shape), raw_dtype=Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def copy_metadata(file: Path, writer: gguf.GGUFWriter) -> None:
    """All but what a writer adds by itself."""
    reader = GgufFile(file)._readers[0]
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.")):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
