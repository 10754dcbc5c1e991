"""Exported scripts: any text as a path or a value is one word of one command, and nothing else is run."""

from __future__ import annotations

import ast
import copy
import functools
import subprocess

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vlmrun.config.compose import compose
from vlmrun.config.validate import validate
from vlmrun.importers.export import FAMILIES, script

PLACE = "PLACE"
# Every command tells its words, and what it is given on stdin; another one is not found, since there is no PATH.
SHELL = """\
PATH=/nowhere
tell() { printf '%s\\0' "$@"; }
deepspeed() { tell deepspeed "$@" "VALUE=$VALUE"; }
cp() { tell cp "$@"; }
cat() { :; }
python() { tell python "$@"; if [[ $1 == - ]]; then local all; IFS= read -r -d '' all || :; tell "$all"; fi; }
"""
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda text: not text.startswith("~")
)


@functools.cache
def _tree(family):
    recipe = "minicpm_v25_lora" if family == "minicpm" else "bunny_llama3_average"
    folders = [f"data.{name}.{key}=x" for name in ("minicpm", "minicpm_eval") for key in ("annotations", "images")]
    return compose([f"+recipe={recipe}", *(folders if family == "minicpm" else [])]).tree


def _script(family, text):
    """Of a recipe whose paths and values are all this text."""
    tree = copy.deepcopy(_tree(family))
    for part in ("llm", "tower"):
        tree["model"][part]["path"] = text
    for source in tree["data"].values():
        source["annotations"] = source["images"] = text
    tree["hardware"]["env"] = {"VALUE": text, f"X; {text}": "1"}
    tree["stage"]["merge"]["init_from"] = text
    run, problems = validate(tree, [])
    assert run is not None, problems
    return script(run, family)


def _words(text, folder):
    """The words of the commands that a script gives, and the strings of the Python that it gives some of them."""
    parsed = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)
    assert (parsed.returncode, parsed.stderr) == (0, b"")
    (folder / "script").write_bytes((SHELL + text).encode())
    done = subprocess.run(["bash", "script"], cwd=folder, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), text
    found = []
    for word in done.stdout.decode().split("\0"):
        if word.startswith(("import ", "from ")):
            tree = ast.parse(word)
            found += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        else:
            found.append(word)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(TEXTS)
@example("x\ntouch stray")
@example("x; touch stray; '\"$(touch stray)`touch stray`")
@example("EOF\nimport os\nEOF\ntouch stray")
@example("x\r\x0b\x85\u2028touch stray\\")
def test_any_text_is_the_same_word_of_the_same_command(tmp_path_factory, family, text):
    assume(text not in _tree(family)["stage"])
    folder = tmp_path_factory.mktemp("exported")
    expected = [
        word.replace(PLACE, text) if isinstance(word, str) else word for word in _words(_script(family, PLACE), folder)
    ]
    assert _words(_script(family, text), folder) == expected
    written = {path.name for path in folder.iterdir()}
    assert "stray" not in written
    assert all(name == "script" or name.startswith("ds_") for name in written)
