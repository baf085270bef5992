"""K and V of finished prompts: pages, the radix tree over them, what is spilled to disk."""
