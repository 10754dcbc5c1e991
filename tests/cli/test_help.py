"""Help: every verb has it, with examples that are right, within 80 columns."""

import re

import pytest

from scripts import make_reference, parsers
from vlmrun.cli import app
from vlmrun.config.catalog import Catalog

VERBS = [(), *parsers.verbs()]


@pytest.fixture(scope="module")
def shown():
    return {verb: make_reference.help_of(*verb) for verb in VERBS}


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_fits_80_columns(shown, verb):
    too_long = [line for line in shown[verb].splitlines() if len(line) > 80]
    assert too_long == []


@pytest.mark.parametrize("verb", VERBS[1:], ids=" ".join)
def test_every_verb_says_how_it_is_used_and_has_examples_of_its_own(shown, verb):
    text = shown[verb]
    assert text.startswith(f"usage: vlmrun {'[train]' if verb == ('train',) else ' '.join(verb)}")
    examples = _examples(text)
    assert examples
    assert all(re.search(rf"\bvlmrun\b.*\b{verb[0]}\b|^vlmrun ", line) for line in examples)
    assert text != shown[()]


@pytest.mark.parametrize("verb", VERBS[1:], ids=" ".join)
def test_options_and_recipes_of_examples_exist(shown, verb):
    recipes = Catalog().options("recipe")
    for line in _examples(shown[verb]):
        for option in re.findall(r"(?<=\s)--[a-z][\w-]+", line):
            assert option in shown[verb].partition("examples:")[0], line
        for name in re.findall(r"\+recipe=(\w+)", line):
            assert name in recipes or name == "mine", line


def _examples(text):
    """Command lines, continued ones joined."""
    lines = text.partition("examples:\n")[2].replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if "vlmrun" in line]


def test_the_global_help_names_every_verb(shown):
    named = set(re.findall(r"^  ([a-z-]+)\b", shown[()], re.MULTILINE))
    assert set(app.VERBS) - {"train"} <= named


def test_what_completion_reads_is_not_stale():
    assert make_reference.render_options() == make_reference.OPTIONS.read_text(), "run: make docs"


def test_the_page_of_commands_is_not_stale():
    assert make_reference.render_commands() == make_reference.COMMANDS_PAGE.read_text(), "run: make docs"
