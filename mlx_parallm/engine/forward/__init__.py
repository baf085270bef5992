"""From a plan to hidden states: one packed forward a step, or padded ones."""
