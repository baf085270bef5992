"""Measuring what Extended Mind memories are good for; see scripts/eval_extended_mind.py."""
