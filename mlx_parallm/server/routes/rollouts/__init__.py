"""Routes for trainers: samples in several forms."""
