"""GGUF files, llama.cpp's format, as folders in Hugging Face format."""
