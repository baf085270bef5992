"""Model files for benchmarks: a real model without a hub, and GGUF files for llama.cpp."""
