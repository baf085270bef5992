"""The trained parts as a folder in the layout of Idefics3, as Hugging Face has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from bundled.sample import CHAT_TEMPLATE, PADDING, TURN_END
from tokenizers import Tokenizer

from .grown import Grown, flat
from .lessons import AROUND, IMAGE, picture_token
from .tower import EDGE, EPSILON, MERGE, PATCH, TOKENS, Tower, TowerSize

# Contents are a text, or a list of parts of which some are pictures.
_PARTS = (
    "{%- macro said(content) %}"
    "{%- if content is string %}{{- content }}"
    "{%- else %}{%- for part in content or [] %}"
    "{%- if part.type == 'image' %}{{- '" + IMAGE + "' }}"
    "{%- else %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{%- endmacro %}"
)


def chat_template() -> str:
    """The text model's, for contents with pictures too."""
    template = CHAT_TEMPLATE
    for old, new in (
        ("set system = messages[0].content", "set system = said(messages[0].content)"),
        ("(message.content or '')", "said(message.content)"),
        ("+ message.content + '<|im_end|>", "+ said(message.content) + '<|im_end|>"),
    ):
        if old not in template:
            raise ValueError(f"the chat template has changed: no {old!r}")
        template = template.replace(old, new)
    return _PARTS + template


def config(text: dict[str, Any], tower: TowerSize, image_token: int) -> dict[str, Any]:
    """config.json. What concerns the whole model stands outside, what the text model is inside."""
    outside = ("architectures", "torch_dtype", "extended_mind", "initializer_range")
    shared = {"pad_token_id", "eos_token_id", "bos_token_id", "vocab_size", "tie_word_embeddings"}
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        **{name: text[name] for name in sorted(shared)},
        "image_token_id": image_token,
        "scale_factor": MERGE,
        "max_position_embeddings": text["max_position_embeddings"],
        "torch_dtype": "float16",
        "extended_mind": text["extended_mind"],
        "text_config": {name: value for name, value in text.items() if name not in outside},
        "vision_config": {
            "model_type": "idefics3_vision",
            "hidden_size": tower.width,
            "num_attention_heads": tower.heads,
            "num_hidden_layers": tower.layers,
            "intermediate_size": tower.hidden,
            "image_size": EDGE,
            "patch_size": PATCH,
            "num_channels": 3,
            "layer_norm_eps": EPSILON,
            "hidden_act": "gelu_pytorch_tanh",
        },
    }


def weights(tower: Tower, grown: Grown) -> dict[str, mx.array]:
    """Names and shapes as in Idefics3's checkpoints; float16, and float32 where a weight was
    scaled so that the text model stays what it was."""
    found: dict[str, mx.array] = {}
    for name, weight in grown.weights():
        name = name.replace("model.", "model.text_model.", 1)
        found[name] = weight if weight.ndim == 1 else weight.astype(mx.float16)
    for name, weight in flat(tower):
        found[_tower_name(name)] = _as_convolution(name, weight).astype(mx.float16)
    return found


def _tower_name(name: str) -> str:
    starts = {
        "patch.": "vision_model.embeddings.patch_embedding.",
        "position.": "vision_model.embeddings.position_embedding.",
        "layers.": "vision_model.encoder.layers.",
        "post_layernorm.": "vision_model.post_layernorm.",
        "proj.": "connector.modality_projection.proj.",
    }
    (start,) = (start for start in starts if name.startswith(start))
    return f"model.{starts[start]}{name.removeprefix(start)}"


def _as_convolution(name: str, weight: mx.array) -> mx.array:
    """The matrix over a patch's pixels as torch's convolution has it: (out, colours, y, x)."""
    if name != "patch.weight":
        return weight
    return weight.reshape(-1, PATCH, PATCH, 3).transpose(0, 3, 1, 2)


def save(
    folder: Path, tower: Tower, grown: Grown, size: TowerSize, text: dict[str, Any], tok: Tokenizer
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: mx.contiguous(one) for name, one in weights(tower, grown).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "pt"})
    tok.save(str(folder / "tokenizer.json"))
    special = {"eos_token": TURN_END, "pad_token": PADDING}
    files = {
        "config": config(text, size, picture_token(tok)),
        "generation_config": {
            "eos_token_id": text["eos_token_id"],
            "pad_token_id": text["pad_token_id"],
            "do_sample": False,
        },
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "Idefics3Processor",
            "model_max_length": text["max_position_embeddings"],
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "bos_token": None,
            **special,
            "chat_template": chat_template(),
        },
        "special_tokens_map": {**special, "additional_special_tokens": [AROUND, IMAGE]},
        "processor_config": {"processor_class": "Idefics3Processor", "image_seq_len": TOKENS},
        "preprocessor_config": _preprocessor(),
    }
    for name, content in files.items():
        text_of = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text_of + "\n")


def _preprocessor() -> dict[str, Any]:
    half = [0.5, 0.5, 0.5]
    return {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": EDGE},
        "resample": 1,
        "do_image_splitting": False,
        "max_image_size": {"longest_edge": EDGE},
        "do_rescale": True,
        "rescale_factor": float(np.float64(1) / 255),
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
        "do_pad": True,
    }
