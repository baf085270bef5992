"""Models that hear: speech in, text out, with mlx-audio's Whisper."""
