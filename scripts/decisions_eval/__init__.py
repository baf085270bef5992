"""What scripts/eval_decisions.py asks, and how it judges probabilities."""
