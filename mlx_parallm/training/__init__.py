"""Reinforcement learning (GRPO) in one process with the engine, which samples for it."""
