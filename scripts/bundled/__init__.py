"""Everything that makes and measures the bundled model: corpus, tokenizer, training, checks.

The package belongs to `scripts/train_bundled.py` and `scripts/eval_bundled.py` and is imported
by them as `bundled`; nothing in `mlx_parallm` depends on it.
"""
