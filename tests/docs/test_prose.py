"""Prose is wrapped at 120 columns, and every path that a page or a comment names is there."""

import re

from tests.docs import words

PAGES = [path for path in words.documents() if path.suffix == ".md"] + [words.ROOT / "CHANGELOG.md", words.GLOSSARY]
OTHERS = [path for path in words.documents() if path.suffix != ".md"]
WIDTH = 120
# Folders of the repository; a path that begins with another one is a user's, an output's or another project's.
FOLDERS = "conf|docs|src|tests|launchers|benchmarks|examples|constraints"


def _prose(text):
    """Lines outside of fenced blocks, tables and link definitions."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        fence = line.lstrip().startswith("```")
        inside ^= fence
        if not (inside or fence or line.startswith(("|", "![", "<!--"))):
            yield number, line


def test_prose_is_wrapped():
    lines = [(path, *line) for path in PAGES for line in _prose(path.read_text("utf-8"))]
    wide = [f"{words.name(path)}:{number}: {line}" for path, number, line in lines if len(line) > WIDTH]
    assert len(lines) > 1000
    assert not wide, wide


def test_comments_of_conf_and_launchers_are_wrapped():
    lines = [(path, line) for path in OTHERS for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    wide = [f"{words.name(path)}: {line}" for path, line in lines if len(line) > WIDTH and "Source: " not in line]
    assert lines
    assert not wide, wide


def _named(text):
    """Paths of the repository, and `.py` files named from the package's root; no sources of other projects."""
    text = re.sub(r"Source: .*", "", text)
    for path in re.findall(rf"(?<![\w/.@:-])((?:{FOLDERS})/[\w./*-]*[\w/*])", text):
        yield path
    for path in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", text):
        yield path


def test_paths_that_are_named_exist():
    roots = (words.ROOT, words.ROOT / "src" / "vlmrun")
    named = {(words.name(path), place) for path in (*PAGES, *OTHERS) for place in _named(path.read_text("utf-8"))}
    missing = [(page, place) for page, place in sorted(named) if not any(any(root.glob(place)) for root in roots)]
    assert len(named) > 100
    assert not missing, missing


def test_wide_prose_and_missing_paths_are_found():
    assert [number for number, line in _prose("a\n```\nb\n```\n| c |\nd\n") if line] == [1, 6]
    named = "docs/gone.md, `run/gone.py`, x@1:scripts/theirs.sh, outputs/stages, `tests/docs/`"
    assert list(_named(named)) == ["docs/gone.md", "tests/docs/", "run/gone.py"]
