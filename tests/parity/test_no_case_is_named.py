"""No test knows a case by its name: another folder of recordings may take the place of this one."""

import ast
import gzip
import json
from pathlib import Path

from tests.parity import golden

TESTS = Path(__file__).resolve().parents[1]


def _ids(value):
    """Names of cases that are no mere numbers, and no words that a setting could be."""
    if isinstance(value, list):
        for each in value:
            yield from _ids(each)
    elif isinstance(value, dict):
        name = value.get("id")
        if isinstance(name, str) and not name.isdigit() and any(sign.isdigit() for sign in name) and len(name) > 4:
            yield name


def _names():
    found = {path.parent.name for path in golden.CASES.glob("g6_optim/train_runs/*/result.json")}
    for path in golden.CASES.rglob("*.json*"):
        if path.name.endswith(".jsonl.gz"):
            lines = gzip.decompress(path.read_bytes()).splitlines()
            found |= {name for line in lines for name in _ids(json.loads(line))}
        elif path.suffix == ".json" and path.name != "MANIFEST.json":
            value = json.loads(path.read_text("utf-8"))
            found |= set(_ids(value))
            found |= {name for each in value.values() for name in _ids(each)} if isinstance(value, dict) else set()
    return found


def test_no_source_of_the_tests_names_a_case():
    golden.need(golden.CASES)
    names, used = _names(), []
    for folder in ("parity", "golden"):
        for file in sorted((TESTS / folder).glob("*.py")):
            nodes = ast.walk(ast.parse(file.read_text("utf-8")))
            texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            used += [(file.name, name) for text in texts for part in text.split("/") if (name := part) in names]
    assert names or golden.IS_PART
    assert not used
