"""The name by which recipes, keys and artifacts know the drawn shapes; their code is in `data/prepare/shapes.py`."""

from vlmrun.data.prepare.shapes import prepare

__all__ = ["prepare"]
