"""Saved pico models."""

from tests.unit.models import loaded, make

__all__ = ["loaded", "make"]
