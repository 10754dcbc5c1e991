"""The page of a stage: numbers, curves, answers, lineage, config, versions, files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml
from markupsafe import Markup

from vlmrun import kinds
from vlmrun.artifact import Artifact
from vlmrun.config.job import JOB_FILE
from vlmrun.names import ANSWERS, HELD_OUT, METRICS, SCORES, SHUFFLED
from vlmrun.outcome import Outcome
from vlmrun.report import html, run_page, run_table, svg, tables
from vlmrun.site import curves, lineage, lines, links, pages, questions
from vlmrun.site.found import Found, Row, read_artifact

_FILES = ("artifact.json", JOB_FILE, METRICS, HELD_OUT, SCORES, ANSWERS, SHUFFLED, "logs/rank-0.log")
_MOST_USERS = 50


def make(found: Found, name: str, users: Sequence[Row]) -> tuple[str, str]:
    """A stage's page and its data.

    Args:
        name: its folder's name.
        users: the runs that have it.
    """
    folder = found.stages[name]
    page = links.stage(name)
    made = read_artifact(folder)
    job = lines.read_json(folder / JOB_FILE)
    curve, answers = curves.read(folder), questions.read(folder)
    state = "" if made else _state(name, users)
    data = {
        "name": made.name if made else str(job.get("name", name)),
        "state": state,
        "curves": curve,
        "answers": answers,
        "scores": _scores(lines.read_json(folder / SCORES)),
    }
    outcomes = [Outcome(made.name, made, folder, reused=False)] if made else []
    sections = [
        *_problems(name, found, curve, answers),
        pages.facts(_facts(found, name, made, job)),
        charts([name], curve["n_rows"], _fallback(str(data["name"]), curve)),
        *(run_page.results(outcomes)[2:] if made else ()),  # without the facts and the table, which are above
        asked([name], answers["n"], run_page.pictures(outcomes)),
        _origin(found, name, made, page),
        *(run_page.origins(outcomes) if made else ()),
        config(job.get("stage"), "What it was asked to do"),
        files(page, f"stages/{name}", [each for each in _FILES if (folder / each).is_file()]),
        users_of(page, users),
    ]
    subtitle = f"{data['name']}, {made.kind if made else 'not finished'}"
    return pages.document(page, name, subtitle, sections, state=state, scripts=[links.data(page)]), script(page, data)


def script(page: str, data: Any) -> str:
    """Data as a script, which a page of a folder can load; nothing in it can end the script early."""
    text = json.dumps(lines.safe(data), ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return f"vlmrun.add({json.dumps(links.data_id(page))}, {text});\n".replace("<", "\\u003c")


def charts(names: Sequence[str], n_rows: int, fallback: Markup) -> Markup:
    """Curves that scripts draw over drawings that are there without any."""
    if not names or not n_rows:
        return Markup()
    note = "Drag to zoom, double-click to see all. With the keyboard: arrows move, + and - zoom, 0 shows all."
    stages = [links.data_id(links.stage(name)) for name in names]
    return html.render("site_charts", stages=stages, note=note, fallback=fallback)


def asked(names: Sequence[str], count: int, fallback: Markup) -> Markup:
    """Answers with filters, over some that are there without scripts."""
    if not names or not count:
        return Markup()
    note = f"{count:,} answers." if len(names) == 1 else "Two evaluations side by side on the same image."
    stages = [links.data_id(links.stage(name)) for name in names]
    return html.render("site_answers", stages=stages, note=note, fallback=fallback)


def config(values: Any, title: str) -> Markup:
    """A configuration, closed until it is asked for."""
    if not values:
        return Markup()
    text = yaml.safe_dump(lines.safe(values), sort_keys=False, allow_unicode=True)
    return html.section("Config", "", html.fold(title, html.render("site_text", text=text)))


def files(page: str, folder: str, names: Sequence[str]) -> Markup:
    """Links to files of a folder below the output root."""
    items = [(name, links.file(page, f"{folder}/{name}")) for name in names]
    return html.section("Files", "", html.render("site_links", items=items)) if items else Markup()


def users_of(page: str, users: Sequence[Row]) -> Markup:
    """Runs that have a stage."""
    items = [(row.label, links.href(page, links.run(row.folder))) for row in users[:_MOST_USERS]]
    note = f"The newest {_MOST_USERS} of {len(users):,}." if len(users) > _MOST_USERS else ""
    return html.section("Runs", note, html.render("site_links", items=items)) if items else Markup()


def box(found: Found, name: str, page: str) -> lineage.Stage | None:
    """A stage in a drawing of the lineage; None where there is no such folder."""
    folder = found.stages.get(name)
    if folder is None:
        return None
    made = read_artifact(folder)
    parents = [f"{parent.name}-{parent.key}" for parent in made.parents] if made else []
    label = made.name if made else str(found.unfinished.get(name, {}).get("name", name))
    return lineage.Stage(label, made.kind if made else "not finished", links.href(page, links.stage(name)), parents)


def _origin(found: Found, name: str, made: Artifact | None, page: str) -> Markup:
    """The stage and all it was made from."""
    boxes: dict[str, lineage.Stage] = {}
    waiting = [name] if made else []
    while waiting:
        each = waiting.pop()
        known = None if each in boxes else box(found, each, page)
        if known is not None:
            boxes[each] = known
            waiting += known.parents
    return html.section("Lineage", "", html.card("", lineage.draw(boxes))) if boxes else Markup()


def _state(name: str, users: Sequence[Row]) -> str:
    return users[0].state if users and users[0].state != "finished" else "unfinished"


def _problems(name: str, found: Found, curve: dict[str, Any], answers: dict[str, Any]) -> list[Markup]:
    said = [
        f"{count} line{'s' if count > 1 else ''} of {what} cannot be read and are left out"
        for what, count in ((f"{METRICS} and {HELD_OUT}", curve["n_damaged"]), (ANSWERS, answers["n_damaged"]))
        if count
    ]
    parts = [html.render("site_error", title="Damaged", text="\n".join(said), alert=True)] if said else []
    log = pages.tail(found.stages[name] / "logs" / "rank-0.log") if name in found.unfinished else ""
    return [*parts, html.render("site_error", title="End of the log", text=log, alert=False)] if log else parts


def _facts(found: Found, name: str, made: Artifact | None, job: dict[str, Any]) -> list[tuple[str, Any]]:
    if made is None:
        stage = job.get("stage")
        kind = stage.get("kind") if isinstance(stage, dict) else None
        return [("kind", kind), ("state", "not finished"), ("folder", found.stages[name])]
    shown = [(key, _number(key, value)) for key, value in made.summary.items()]
    return [("kind", made.kind), ("made", tables.local_time(made.created)), ("by run", made.run), *shown]


def _number(key: str, value: Any) -> str:
    """As tables of runs show it, so that one page has one text for one number."""
    style = next((each.style for each in kinds.columns(()) if each.key == key), None)
    found = lines.finite(value)
    if found is None or style is None:
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return run_table.text(style, found)


def _fallback(name: str, curve: dict[str, Any]) -> Markup:
    losses = curve["columns"].get("loss", [])
    held = curve["held"]
    tried = list(zip(held["step"], held["columns"].get("held-out loss", []), strict=False))
    drawn = svg.curve(list(zip(curve["step"], losses, strict=False)), name, tried, curve["last"])
    return html.charts([html.card(f"{name}: loss", drawn)])


def _scores(scores: dict[str, Any]) -> dict[str, Any]:
    """Accuracies with their 95 % intervals, by split."""
    found = {}
    for split in ("seen", "unseen"):
        part = scores.get(split)
        if isinstance(part, dict):
            found[split] = {key: part.get(key) for key in ("accuracy", "interval", "chance", "shuffled", "n_questions")}
    return found
