"""A training checkpoint as a whole model: `format` is what formats know of it, `model` puts it together."""
