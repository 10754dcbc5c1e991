"""The one door from what composes, checks and plans to what loads torch.

Every function imports what it calls when it is called, so importing this module costs nothing and a command that never
comes here never loads torch. No other module may import the back half by a string; `pyproject.toml` lists every edge
that leaves here, each with its reason, and `tests/unit/test_layout.py` counts. Callers name `back` alone: its modules
are only how the door is kept short.
"""

from __future__ import annotations

from vlmrun.back.answering import chat, serve, serve_worker
from vlmrun.back.records import convert_data, lint_data, lint_file, scienceqa, show_sample, unpack_shards, write_shards
from vlmrun.back.stages import Stage, compatible, make, shapes_of, stage
from vlmrun.back.weights import Conversion, compare, convert, know_checkpoints, training_args

__all__ = [
    "Conversion",
    "Stage",
    "chat",
    "compare",
    "compatible",
    "convert",
    "convert_data",
    "know_checkpoints",
    "lint_data",
    "lint_file",
    "make",
    "scienceqa",
    "serve",
    "serve_worker",
    "shapes_of",
    "show_sample",
    "stage",
    "training_args",
    "unpack_shards",
    "write_shards",
]
