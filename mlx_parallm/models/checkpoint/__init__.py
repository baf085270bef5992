"""Checkpoints: what is in safetensors files, and how it becomes a loaded model's parameters."""
