"""Families of architectures in GGUF files, by what their layers are made of."""
