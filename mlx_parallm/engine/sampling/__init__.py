"""From logits to tokens: every row's own settings, the batch at a time."""
