"""Vision towers: pixels to patch features."""
