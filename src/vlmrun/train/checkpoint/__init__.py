"""Checkpoints of a training run: committed, kept, resharded, exported."""
