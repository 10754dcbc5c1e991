"""Where the words that `docs/glossary.md` replaces are still used.

python -m tests.docs.words   lists them
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
# Words that are data or that others look for, by file.
KEPT = {
    "src/vlmrun/cli/recipes.py": {"licence"},  # the key of `about`
    "src/vlmrun/data/prepare/shapes.py": {"colour", "colours"},  # what the images are asked, which keys depend on
    "src/vlmrun/train/setup.py": {"goes on"},  # scripts that watch a log look for `goes on from step`
}
# History that is not rewritten, the list itself, and pages made from conf/ and src/.
ALLOWED = {"CHANGELOG.md", "docs/glossary.md", "docs/reference/config.md", "docs/reference/rules.md"}


@cache
def avoided() -> re.Pattern[str]:
    """The right column of the glossary's second table, as one expression."""
    table = GLOSSARY.read_text("utf-8").partition("## Write this")[2]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")]
    words = [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]
    assert len(words) > 20
    return re.compile(r"\b(" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE)


def found(path: Path) -> list[str]:
    """`line: word` for every use in a file's prose."""
    readers = {".md": _markdown, ".py": _python}
    prose = readers.get(path.suffix, _comments)(path.read_text("utf-8"))
    kept = KEPT.get(name(path), set()) if path.is_relative_to(ROOT) else set()
    words = ((number, word[0]) for number, text in prose for word in avoided().finditer(_plain(text)))
    return [f"{number}: {word}" for number, word in words if word.lower() not in kept]


def _plain(text: str) -> str:
    """Without inline code and link targets, on as many lines."""
    return re.sub(r"`[^`]+`|\]\([^)]*\)", lambda code: "`" + "\n" * code[0].count("\n"), text)


def _markdown(text: str) -> Iterator[tuple[int, str]]:
    """Lines outside of fenced blocks, without inline code."""
    open_fence = re.compile(r"^[ ]*```.*?^[ ]*```", re.DOTALL | re.MULTILINE)
    prose = open_fence.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    paragraphs = re.split(r"(\n\s*\n)", prose)  # a backtick has its partner in its own paragraph
    yield from enumerate("".join(_plain(part) for part in paragraphs).splitlines(), 1)


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        comment = re.search(r"(?:^|\s)#\s?(.*)", line)
        if comment:
            yield number, comment[1]


def _python(text: str) -> Iterator[tuple[int, str]]:
    """Comments, and strings of several words: docstrings, messages, help."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.start[0], token.string


def documents() -> list[Path]:
    """Everything but the package that a reader sees."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "conf").rglob("*.yaml")]
    return [path for path in sorted([*pages, *(ROOT / "launchers").iterdir()]) if name(path) not in ALLOWED]


def modules() -> list[Path]:
    """The package."""
    return sorted((ROOT / "src").rglob("*.py"))


def name(path: Path) -> str:
    """A path from the root of the checkout."""
    return path.relative_to(ROOT).as_posix()


def main() -> None:
    """Lists every use."""
    uses = {name(path): found(path) for path in (*documents(), *modules())}
    for module, lines in uses.items():
        if lines:
            print(f"{module}: {len(lines)}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
