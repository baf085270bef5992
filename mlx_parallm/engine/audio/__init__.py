"""Transcripts of sounds, computed between the steps of the batch."""
