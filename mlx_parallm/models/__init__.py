"""Models: loading, batched caches, and what differs between devices."""
