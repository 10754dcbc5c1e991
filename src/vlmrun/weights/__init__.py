"""Tensors on disk: read lazily, written in parallel, folders published whole."""
