"""Pages as text: the list of runs, a run, a stage, a sweep, and the one that compares."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlmrun import kinds
from vlmrun.report import html, tables
from vlmrun.report.run_table import loss_text, number, share_text
from vlmrun.site import links, sweep_page
from vlmrun.site.found import Found, Row

STATES = ("running", "finished", "failed", "stopped", "interrupted")


def document(
    page: str, title: str, subtitle: str, sections: Sequence[Markup], *, state: str = "", scripts: Sequence[str] = ()
) -> str:
    """A page of the site.

    Args:
        page: its place in the site.
        state: of what it shows; while that is `running` the page looks for new data.
        scripts: data that it needs at once, by place in the site; its own is what it looks for again.
    """
    base = "../" * page.count("/")
    found = [links.href(page, script) for script in scripts]
    own = links.data_id(page) if links.data(page) in scripts else ""
    values = {"base": base, "title": title, "subtitle": subtitle, "state": state, "own": own, "scripts": found}
    return str(html.render("site", sections=[text for text in sections if text], **values)) + "\n"


def home(found: Found) -> str:
    """The list of all runs, newest first, and of sweeps."""
    rows = [_line(row) for row in found.rows]
    swept = [
        {"name": name, "href": links.href(links.HOME, links.sweep(name)), "points": len(rows), "states": _states(rows)}
        for name, rows in sweeps(found).items()
    ]
    body = html.render("site_runs", rows=rows, sweeps=swept, states=STATES, problems=found.problems)
    return document(links.HOME, "Runs", str(found.root), [body])


def compare() -> str:
    """The page that compares the runs which its address names."""
    return document(links.COMPARE, "Compare", "", [html.render("site_compare")], scripts=["runs.js"])


def sweep(name: str, rows: Sequence[Row]) -> str:
    """The page of a sweep."""
    page = links.sweep(name)
    together = links.href(page, links.COMPARE) + "#" + ",".join(links.data_id(links.run(row.folder)) for row in rows)
    parts = [*sweep_page.sections(rows, page), html.render("site_links", items=[("compare all points", together)])]
    return document(page, f"Sweep {name}", _states(rows), parts)


def sweeps(found: Found) -> dict[str, list[Row]]:
    """Points by their sweep, in order."""
    parts: dict[str, list[Row]] = {}
    for row in found.rows:
        kind, _, rest = row.folder.partition("/")
        if kind == "sweeps":
            parts.setdefault(posixpath.dirname(rest), []).append(row)
    return {name: sorted(rows, key=_place) for name, rows in sorted(parts.items(), reverse=True)}


def _place(row: Row) -> tuple[int, str]:
    name = row.folder.rpartition("/")[2]
    return (int(name) if name.isdecimal() else 0, name)


def facts(items: Sequence[tuple[str, Any] | tuple[str, Any, str]]) -> Markup:
    """A table of names and values, some of which are links; those without a value are left out."""
    full = [(name, str(value), *(rest or ("",))) for name, value, *rest in items if value not in (None, "", [])]
    return html.render("site_facts", items=full) if full else Markup()


def tail(path: Path, count: int = 40) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - 16_384))
            return "\n".join(handle.read().decode("utf-8", errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def _states(rows: Sequence[Row]) -> str:
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _line(row: Row) -> dict[str, Any]:
    stages = row.stages.values()
    losses = [number(stage["numbers"], "loss") for stage in stages if kinds.of_artifact(stage["kind"]).trains]
    scores = [number(stage["numbers"], "accuracy") for stage in stages]
    page = links.run(row.folder)
    return {
        "label": row.label,
        "page": links.data_id(page),
        "href": links.href(links.HOME, page),
        "started": tables.local_time(row.started),
        "state": row.state,
        "archived": row.archived,
        "stages": len(row.stages),
        "loss": loss_text(next((value for value in reversed(losses) if value is not None), None)),
        "accuracy": share_text(next((value for value in reversed(scores) if value is not None), None)),
        "tags": " ".join(row.tags),
        "overrides": " ".join(row.overrides),
        "note": row.note,
    }
