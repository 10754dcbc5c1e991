"""Weights on disk: read lazily, written shard by shard."""
