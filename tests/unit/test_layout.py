"""How the package is laid out, as far as import-linter does not say it: the one door, late imports, sizes of files."""

import ast
import importlib
import inspect
import typing
from pathlib import Path

import pytest

import vlmrun
from vlmrun import back
from vlmrun.cli import app

ROOT = Path(vlmrun.__file__).parent
DOOR = "back/"

# Modules that import by a name that is not written in them; all others import with `import`.
BY_NAME = {
    "build.py": "a `_target_`, a stage's kind or a merge method of the configuration, allow-listed",
    "cli/app.py": "the verb that was typed, from the table beside it, so that --help loads nothing",
    "data/formats/__init__.py": "a data format by its name in the configuration, allow-listed",
}
# Imports of our own inside functions, the door's not counted. Lower it when one goes; never raise it.
LATE_IMPORTS = 3
MAX_LINES = 250
# Files that read better in one piece than in two, with the lines they have now.
LONG = {
    "signature.py": (265, "arguments and attributes of a class, by one walk through modules and bases"),
    "data/templates.py": (366, "the built-in templates, a table, and the one function that renders them"),
    "formats/upstream.py": (270, "one reader and writer of four codes that differ in names"),
    "model/tokenizers.py": (265, "what upstream's tokenizers do otherwise, one function each"),
    "weights/adapter.py": (300, "PEFT's folder: reading, folding and writing share one table of names"),
    "zero/user_json.py": (255, "one pass over a user's file, by DeepSpeed's own names"),
}


def _trees():
    for file in sorted(ROOT.rglob("*.py")):
        yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text("utf-8"))


def _imports_by_name(tree):
    names = {"import_module", "__import__", "resolve_name"}
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(getattr(call, "attr", getattr(call, "id", "")) in names for call in calls)


def test_only_the_door_and_what_users_name_is_imported_by_a_string():
    assert {name for name, tree in _trees() if _imports_by_name(tree)} == set(BY_NAME)


def _late(tree):
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {node for function in functions for node in ast.walk(function) if isinstance(node, ast.ImportFrom)}
    return [node for node in inside if (node.module or "").split(".")[0] == "vlmrun"]


def test_imports_of_our_own_stand_at_the_top():
    late = {f"{name}:{node.lineno}" for name, tree in _trees() if not name.startswith(DOOR) for node in _late(tree)}
    assert len(late) == LATE_IMPORTS, f"lower the number, move up, or let the door import it: {sorted(late)}"


def test_every_function_of_the_door_says_what_it_takes_and_gives():
    functions = [member for _, member in inspect.getmembers(back, inspect.isfunction)]
    public = [function for function in functions if function.__module__.startswith(f"{back.__name__}.")]
    assert {function.__name__ for function in public} | {"Conversion", "Stage"} == set(back.__all__)
    for function in public:
        names = (*inspect.signature(function).parameters, "return")
        vague = [name for name in names if function.__annotations__.get(name) in (None, "Any", "object")]
        assert vague == [], function.__name__


@pytest.mark.parametrize("verb", app.VERBS)
def test_every_verb_of_the_table_is_a_function_of_words_and_an_exit_code(verb):
    module, _, name = app.VERBS[verb].partition(":")
    function = getattr(importlib.import_module(module), name)
    assert typing.get_type_hints(function) == {"arguments": list[str], "return": int}


def test_html_is_written_by_templates_alone():
    """Which escape what they are given; text that is put together in Python does not."""
    by_hand = {
        f"{name}:{node.lineno}"
        for name, tree in _trees()
        if name.startswith("report/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ("</" in node.value or "/>" in node.value)
    }
    assert by_hand == set()


def test_files_are_short():
    texts = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in ROOT.rglob("*.py")}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    bounds = {name: LONG.get(name, (MAX_LINES, ""))[0] for name in lines}
    assert {name: n for name, n in lines.items() if n > bounds[name]} == {}, "split it where it reads better in two"
    idle = [name for name in LONG if lines.get(name, 0) <= MAX_LINES]
    assert idle == [], "short again: take it off the list"
