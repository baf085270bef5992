"""Samples for trainers: their requests as ours, and answers with token ids and chances."""
