"""vlmrun: train vision-language models from one declarative description."""

__version__ = "0.1.0"
