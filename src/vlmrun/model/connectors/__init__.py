"""Connectors: patch features to image tokens."""
