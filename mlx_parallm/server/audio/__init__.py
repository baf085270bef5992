"""Speech to text: OpenAI's /v1/audio, computed between the steps of the batch."""
