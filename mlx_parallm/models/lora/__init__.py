"""Low-rank adapters (LoRA, rsLoRA, DoRA): read from files, and added to one forward row by row."""
