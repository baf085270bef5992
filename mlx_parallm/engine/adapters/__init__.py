"""Adapters while the engine runs: which are on the device, and switches of versions."""
