"""A tiny Gemma 3 in a GGUF file, and the mmproj file that it sees with."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.models import tiny_gguf
from tests.models.tiny_gguf import WIDTH, Shapes

SIDE, PATCH, POOLED, DEPTH, TOWER, TOWER_HIDDEN, HEADS = 32, 8, 2, 2, 32, 48, 2
SPECIAL = ("<start_of_image>", "<end_of_image>", "<unused0>", "<unused1>")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<start_of_image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def write_text(folder: Path) -> Path:
    """The part that reads and writes; without a token that stands for pictures."""
    return tiny_gguf.write(
        folder / "tiny.gguf",
        "gemma3",
        values={"attention.sliding_window": 64},
        tied=True,
        special=SPECIAL,
        template=TEMPLATE,
    )


def write_mmproj(
    folder: Path, kind: str = "gemma3", *, width: int = WIDTH, turned: bool = False
) -> Path:
    """The part that sees, for texts of a `width`; `turned`: as older converters named MLPs."""
    path = folder / "mmproj-tiny-F32.gguf"
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(kind)
    writer.add_vision_image_size(SIDE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(TOWER)
    writer.add_vision_feed_forward_length(TOWER_HIDDEN)
    writer.add_vision_projection_dim(width)
    writer.add_vision_block_count(DEPTH)
    writer.add_vision_head_count(HEADS)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(POOLED)
    random = np.random.default_rng(5)
    for name, shape in _shapes(turned).items():
        array = tiny_gguf.draw(random, name, shape, "clip")
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(turned: bool) -> Shapes:
    found: Shapes = {
        "v.patch_embd.weight": (TOWER, 3, PATCH, PATCH),
        "v.patch_embd.bias": (TOWER,),
        "v.position_embd.weight": ((SIDE // PATCH) ** 2, TOWER),
        "mm.input_projection.weight": (TOWER, WIDTH),
        "mm.soft_emb_norm.weight": (TOWER,),
    }
    up, down = ("ffn_down", "ffn_up") if turned else ("ffn_up", "ffn_down")
    square = (TOWER, TOWER)
    parts = {**dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), square)}
    parts |= {up: (TOWER_HIDDEN, TOWER), down: (TOWER, TOWER_HIDDEN)}
    for at in (f"v.blk.{i}" for i in range(DEPTH)):
        for name, shape in parts.items():
            found |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        found |= _norm(f"{at}.ln1") | _norm(f"{at}.ln2")
    return found | _norm("v.post_ln")


def _norm(name: str) -> Shapes:
    return {f"{name}.weight": (TOWER,), f"{name}.bias": (TOWER,)}
