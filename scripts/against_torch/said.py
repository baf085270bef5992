"""What transformers says on torch. Runs in an interpreter that has torch, and knows no mlx.

said.py JOBS: a file with a JSON list of objects with the fields of `Job`. For each, a model with
random weights is made, saved as users' files are, and asked.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.utils import logging


@dataclass(frozen=True)
class Job:
    """One model to make and ask.

    Attributes:
        folder: with its config.json, tokenizer and processor.
        saved: a folder for all of it as transformers saves it.
        text: a prompt; pictures: files of numpy's, (height, width, 3) uint8 each.
        tokens: of the greedy answer.
        result: a file of numpy's for what it says; one that ends in .txt has the error.
    """

    folder: str
    saved: str
    text: str
    pictures: list[str]
    tokens: int
    result: str


def processor_of(folder: str) -> Any:
    """transformers' own; pictures are resized by Pillow where it can."""
    processor = AutoProcessor.from_pretrained(folder)
    try:
        processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except (ImportError, ValueError):
        print(f"{folder}: pictures are resized by torchvision", file=sys.stderr)
    return processor


def random_model(folder: str) -> Any:
    """With weights so large that pictures decide what is said."""
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.2
            weight.copy_(noise + 1.0 if weight.ndim == 1 else noise)
    return model.eval()


def say(job: Job) -> None:
    """Make, save and ask one model."""
    processor, model = processor_of(job.folder), random_model(job.folder)
    model.save_pretrained(job.saved)
    processor.save_pretrained(job.saved)
    images = [Image.fromarray(np.load(file)) for file in job.pictures]
    given = processor(text=[job.text], images=images, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        np.savez(job.result, **asked(model, given, job.tokens))


def asked(model: Any, given: Any, count: int) -> dict[str, Any]:
    """Log-probabilities of a prompt's tokens but the first, and of a greedy answer."""
    ids = given["input_ids"][0]
    model.generation_config.eos_token_id = None
    rows = torch.log_softmax(model(**given).logits[0].float(), -1)
    answer = model.generate(
        **given,
        max_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = answer.sequences[0, len(ids) :]
    told = torch.log_softmax(torch.cat(answer.logits).float(), -1)
    return {
        "ids": ids,
        "pixels": given["pixel_values"],
        "scores": rows[torch.arange(len(ids) - 1), ids[1:]],
        "tokens": tokens,
        "logprobs": told[torch.arange(len(tokens)), tokens],
    }


def main(path: str) -> None:
    logging.disable_progress_bar()
    for found in json.loads(Path(path).read_text()):
        job = Job(**found)
        try:
            say(job)
        except Exception:  # noqa: BLE001 - the other models are asked all the same
            Path(job.result).with_suffix(".txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(sys.argv[1])
