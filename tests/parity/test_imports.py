"""A script written from the published tables imports to the published recipe; what differs is listed with its reason."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import yaml

from vlmrun.config.compose import compose
from vlmrun.importers import write
from vlmrun.importers.meaning.draft import Options
from vlmrun.importers.script import Request, plan

TABLES = {
    path.stem: yaml.safe_load(path.read_text("utf-8"))
    for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
}
ENTRIES = {"minicpm": "finetune.py", "bunny": "bunny/train/train.py"}
