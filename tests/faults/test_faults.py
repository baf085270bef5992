"""Faults of every kind in a real server: the request that meets one gets its error, all others
their right answers, rows and pages come back, and /health tells the truth.

What each fault does is in the table. NaN, stalls, memory that runs short and full disks have
tests of their own beside this one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.forward.packed_forwards import PackedForwards
from mlx_parallm.engine.grammar.constraint import Constraint
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.sampling.sampler import Sampler
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.server.input.prompts import Prompts
from tests.conftest import tiny_llama
from tests.engine.mock import byte_tokenizer
from tests.faults.conftest import ServeFactory
from tests.server.conftest import Served
from tests.waiting import wait_until

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
CURSED = "the one that breaks things, and is long enough for a page or two of the prefix cache"
CURSED_IDS = byte_tokenizer().encode(CURSED, add_special_tokens=False)
Patch = pytest.MonkeyPatch


class Broken(RuntimeError):
    """A fault; its text is a secret of ours."""


NO_MEMORY = "[malloc] Unable to allocate 12345 bytes: secret."


def cursed(sequences: Any) -> bool:
    return any(sequence.prompt == CURSED_IDS for sequence in sequences)


def in_forward(error: str, where: str) -> Callable[[Patch], None]:
    """Fail every forward that has the cursed one's prompt or, "decode", its later tokens."""

    def inject(patch: Patch) -> None:
        compute = PackedForwards.compute

        def failing(self: PackedForwards, work: Any) -> Any:
            met: list[Sequence] = work.chunked if where == "prefill" else work.decode
            if cursed(s for s in met if where == "prefill" or s.num_sampled > 2):
                raise Broken(error)
            return compute(self, work)

        patch.setattr(PackedForwards, "compute", failing)

    return inject


def in_sampler(patch: Patch) -> None:
    sample = Sampler.sample

    def failing(self: Sampler, logits: Any, sequences: Any, *more: Any) -> Any:
        if cursed(sequences):
            raise Broken("secret")
        return sample(self, logits, sequences, *more)

    patch.setattr(Sampler, "sample", failing)


def in_reading(patch: Patch) -> None:
    """What is computed later than it was launched fails later, too."""
    collect = ModelRunner.collect

    def failing(self: ModelRunner, launched: Any) -> Any:
        if cursed(launched.decode):
            raise Broken("secret")
        return collect(self, launched)

    patch.setattr(ModelRunner, "collect", failing)


def in_constraint(patch: Patch) -> None:
    def failing(self: Constraint, token: int) -> None:
        raise Broken("secret")

    patch.setattr(Constraint, "take", failing)


def in_encoding(patch: Patch) -> None:
    encode = Prompts._ids_of

    def failing(self: Prompts, text: str, *more: Any) -> Any:
        if CURSED in text:
            raise Broken("secret")
        return encode(self, text, *more)

    patch.setattr(Prompts, "_ids_of", failing)


def in_decoding(patch: Patch) -> None:
    make, push = TextStream.__init__, TextStream.push
    streams: list[TextStream] = []

    def noting(self: TextStream, *arguments: Any, prompt: Any, **more: Any) -> None:
        make(self, *arguments, prompt=prompt, **more)
        if prompt == CURSED_IDS:
            streams.append(self)

    def failing(self: TextStream, output: Any) -> Any:
        if self in streams and output.finish_reason is not None:
            raise Broken("secret")
        return push(self, output)

    patch.setattr(TextStream, "__init__", noting)
    patch.setattr(TextStream, "push", failing)


@dataclass(frozen=True)
class Fault:
    """A fault, and the answer to the request that meets it."""

    name: str
    inject: Callable[[Patch], None]
    status: int = 500
    code: str = "internal_error"
    more: dict[str, Any] = field(default_factory=dict)


FAULTS = [
    Fault("the forward of its prompt", in_forward("secret", "prefill")),
    Fault("the forward of a later token", in_forward("secret", "decode")),
    Fault("its sampling", in_sampler),
    Fault("the reading of its step", in_reading),
    Fault("the reading of its last step", in_reading, more={"max_tokens": 1}),
    Fault("its grammar", in_constraint, more={"structured_outputs": {"regex": "[a-c]{9}"}, "n": 2}),
    Fault("the tokenizer, of its prompt", in_encoding),
    Fault("the tokenizer, of its answer", in_decoding),
    Fault("no memory for its prompt", in_forward(NO_MEMORY, "prefill"), 503, "insufficient_memory"),
    Fault("no memory for a token", in_forward(NO_MEMORY, "decode"), 503, "insufficient_memory"),
]


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 10, "seed": 5, "ignore_eos": True, **more}


def text_of(served: Served, prompt: str) -> Any:
    return served.ok(COMPLETIONS, **body(prompt))["choices"][0]["text"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_who_meets_a_fault_gets_its_error_and_others_their_answers(
    serve: ServeFactory, fault: Fault, monkeypatch: Patch
) -> None:
    served = serve(tiny_llama)
    goods = [f"a good one, number {place}, also of some length" for place in range(4)]
    alone = [text_of(served, good) for good in goods]
    with monkeypatch.context() as patch, ThreadPoolExecutor(6) as pool:
        fault.inject(patch)
        for stream in (False, True):
            beside = [pool.submit(text_of, served, good) for good in goods]
            answer = served.post(COMPLETIONS, **body(CURSED) | fault.more, stream=stream)
            assert [one.result() for one in beside] == alone
            assert "secret" not in answer.text
            if stream and answer.status_code == 200:  # its first tokens were sent before
                assert f'"code":"{fault.code}"' in answer.text
                assert "[DONE]" not in answer.text
                continue
            assert answer.status_code == fault.status, answer.text
            assert answer.json()["error"]["code"] == fault.code
            assert ("retry-after" in answer.headers) is (fault.status == 503)
        assert served.http.get("/health").status_code == 200
    # The fault has passed: nothing of it is left.
    assert len(text_of(served, CURSED)) > 0
    assert [text_of(served, good) for good in goods] == alone


@pytest.mark.parametrize("times", [1, 3])
def test_a_fault_of_the_whole_forward_that_passes_costs_nobody(
    serve: ServeFactory, times: int, monkeypatch: Patch
) -> None:
    served = serve(tiny_llama)
    goods = [f"number {place} of those that are well" for place in range(5)]
    alone = [text_of(served, good) for good in goods]
    compute, left = PackedForwards.compute, itertools.count()

    def failing(self: PackedForwards, work: Any) -> Any:
        # Rows are tried one by one after a fault: further faults must not meet a lone one.
        if len(work.decode) > 1 and next(left) < times:
            raise Broken("the device failed")
        return compute(self, work)

    monkeypatch.setattr(PackedForwards, "compute", failing)
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda good: text_of(served, good), goods)) == alone


def test_a_forward_that_always_fails_answers_everybody(
    serve: ServeFactory, monkeypatch: Patch
) -> None:
    served = serve(tiny_llama)
    right = text_of(served, "x")

    def failing(self: PackedForwards, work: Any) -> Any:
        raise Broken("secret")

    with monkeypatch.context() as patch, ThreadPoolExecutor(5) as pool:
        patch.setattr(PackedForwards, "compute", failing)
        asked = [pool.submit(served.post, COMPLETIONS, **body(f"p{i}")) for i in range(5)]
        assert [one.result().status_code for one in asked] == [500] * 5
    assert text_of(served, "x") == right
    assert served.http.get("/health").status_code == 200


def test_a_clock_that_jumps_ends_nothing_early(
    serve: ServeFactory, monkeypatch: Patch, tmp_path: Path
) -> None:
    settings = {"request_timeout": 120, "memory_dir": str(tmp_path / "memories")}
    kept = {"prefix_cache_dir": tmp_path / "prefixes", "prefix_cache_memory": 1 << 16}
    served = serve(tiny_llama, settings, step_timeout=120, **kept)
    right = text_of(served, "tick")
    now, jumps = time.time, itertools.cycle([0, 1e7, -1e7, 3e8, -3e8])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: text_of(served, "tick"), range(8))) == [right] * 8
    path = "/v1/models/tiny/memories"
    job = served.post(path, collection="c", text="tick tock " * 30).json()["id"]
    wait_until(lambda: '"done"' in served.http.get(f"/v1/memories/jobs/{job}").text)
    remembering = {"prompt": "tick", "max_tokens": 4, "memory": {"collections": ["c"]}}
    assert served.ok(COMPLETIONS, **remembering)["choices"][0]["finish_reason"]
    answer = served.ok("/v1/responses", input="tick", store=True, max_output_tokens=8)
    assert served.http.get(f"/v1/responses/{answer['id']}").status_code == 200
    assert served.http.get("/health").status_code == 200
