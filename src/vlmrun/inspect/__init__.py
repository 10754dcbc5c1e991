"""Samples as the model sees them, for `vlmrun data`."""
