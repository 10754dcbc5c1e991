"""Hooks of mkdocs: README.md and its neighbors become pages, and links between them and docs/ stay links."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Pages outside of docs/ -> where they are on the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not in docs/, and a list of the decisions."""
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    decisions = sorted((ROOT / "docs" / "adr").glob("*.md"))
    lines = [f"- [{file.read_text('utf-8').partition(chr(10))[0].lstrip('# ')}]({file.name})" for file in decisions]
    files.append(File.generated(config, "adr/index.md", content="# Decisions\n\n" + "\n".join(lines) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links: to another page by its place on the site, to a file of the repository into its name."""
    place = page.file.src_uri
    source = {site: outside for outside, site in OUTSIDE.items()}.get(place, f"docs/{place}")
    fenced = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda found: _turned(found, source, place), part)
        for part in fenced.split(markdown)
    )


def _turned(found: re.Match[str], source: str, place: str) -> str:
    mark, text, target, anchor = found[1], found[2], found[3], found[4] or ""
    if not target or re.match(r"\w+:", target):
        return found[0]
    path = os.path.normpath(os.path.join(os.path.dirname(source), target))  # noqa: PTH118, PTH120
    if path == "docs/adr":
        path = "docs/adr/index.md"
    site = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if site is None:
        return text if not mark else ""
    return f"{mark}[{text}]({os.path.relpath(site, os.path.dirname(place) or '.')}{anchor})"  # noqa: PTH120
