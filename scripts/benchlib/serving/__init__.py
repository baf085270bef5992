"""Servers compared over HTTP: what is asked of them, in which order, and what came of it."""
