"""Describe and check: Hydra composes a plain dict, pydantic types it, cross checks judge it. Never loads torch."""
