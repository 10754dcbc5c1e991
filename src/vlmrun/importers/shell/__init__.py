"""Reads a shell script in a closed world: what it would start, without starting anything."""
