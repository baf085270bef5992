"""Other servers' APIs, Ollama's and llama.cpp's, as thin doors to the same generation."""
