"""The page of a run: how it was started and ended, its stages, curves, differences, answers and lineage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from vlmrun import kinds
from vlmrun.compare import results
from vlmrun.compare.sides import Made
from vlmrun.names import RUN_CONFIG
from vlmrun.outcome import Outcome
from vlmrun.report import html, run_page, tables
from vlmrun.report.run_table import share_text
from vlmrun.run import record
from vlmrun.run.record import Record
from vlmrun.site import lineage, lines, links, pages, stage_page
from vlmrun.site.found import Found, Row, read_artifact

_FILES = (record.NAME, RUN_CONFIG)


def make(found: Found, row: Row, one: Record) -> tuple[str, str]:
    """A run's page and its data."""
    page = links.run(row.folder)
    outcomes = _outcomes(found, row)
    trained = [each["id"] for each in row.stages.values() if kinds.of_artifact(each["kind"]).trains]
    answered = [item for item in outcomes if kinds.of_artifact(item.artifact.kind).answers]
    folder = found.root / row.folder
    sections = [
        _error(row),
        pages.facts(_facts(row, one)),
        *run_page.results(outcomes),
        stage_page.charts(trained, len(trained), run_page.losses(outcomes)),
        _differences(answered),
        stage_page.asked([item.folder.name for item in answered], len(answered), run_page.pictures(outcomes)),
        _lineage(found, row, page),
        *run_page.origins(outcomes),
        stage_page.config(one.config, "The composed config"),
        stage_page.files(page, row.folder, [name for name in _FILES if (folder / name).is_file()]),
        _compare(page),
    ]
    subtitle = " ".join(row.overrides) or row.command
    script = stage_page.script(page, {**_data(row, found), "config": one.config})
    return pages.document(page, row.label, subtitle, sections, state=row.state, scripts=[links.data(page)]), script


def _data(row: Row, found: Found) -> dict[str, Any]:
    stages = {
        name: {"id": links.data_id(links.stage(each["id"])), "kind": each["kind"], "numbers": each["numbers"]}
        for name, each in row.stages.items()
        if each["id"] in found.stages
    }
    return {"label": row.label, "page": links.href("", links.run(row.folder)), "state": row.state, "stages": stages}


def _outcomes(found: Found, row: Row) -> list[Outcome]:
    outcomes = []
    for name, each in row.stages.items():
        folder = found.stages.get(each["id"])
        made = read_artifact(folder) if folder else None
        if folder and made:
            outcomes.append(Outcome(name, made, folder, reused=bool(each["reused"])))
    return outcomes


def _error(row: Row) -> Markup:
    if row.state == "interrupted":
        text = "Its process is gone and said nothing. The same command resumes it:\n" + row.command
        return html.render("site_error", title="Interrupted", text=text, alert=True)
    if row.state in ("failed", "stopped") and row.error:
        return html.render("site_error", title=row.state.capitalize(), text=row.error, alert=row.state == "failed")
    return Markup()


def _facts(row: Row, one: Record) -> list[tuple[str, Any]]:
    last = one.last
    code = last.code or {}
    changed = code.get("changed") or []
    said = f"{code.get('commit')}" + (f", {len(changed)} files differ from it" if changed else "") if code else None
    return [
        ("command", last.command),
        ("started", tables.local_time(row.started)),
        ("ended", tables.local_time(row.ended) if row.ended else None),
        ("launches", len(one.launches)),
        ("started in", last.folder),
        ("machine", last.host),
        ("GPUs", ", ".join(last.gpus)),
        ("code", said),
        ("versions", ", ".join(f"{name} {version}" for name, version in last.versions.items())),
        ("tags", " ".join(row.tags)),
        ("note", row.note),
        ("archived", "yes" if row.archived else None),
    ]


def _differences(answered: Sequence[Outcome]) -> Markup:
    """Each evaluation against the one before it, on the questions that both answered."""
    rows = []
    for first, second in itertools.pairwise(answered):
        try:
            found = results.compare("", _made(first), _made(second))
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            continue  # damaged answers, which the stage's page counts
        if found.paired is None:
            continue
        bounds = found.paired.interval
        between = f"{100 * bounds.low:+.1f} .. {100 * bounds.high:+.1f}" if bounds else ""
        accuracies = next((each for each in found.numbers if each.name == "accuracy"), None)
        shown = [share_text(lines.finite(each)) for each in (accuracies.first, accuracies.second)] if accuracies else []
        test = f"{found.paired.p_value:.3g}"
        counts = [str(found.paired.better), str(found.paired.worse), f"{found.paired.n_questions:,}"]
        names = f"{first.name} to {second.name}"
        rows.append([names, *(shown or ["", ""]), f"{100 * found.paired.difference:+.1f}", between, test, *counts])
    if not rows:
        return Markup()
    titles = ["evaluations", "before", "after", "difference", "95 % interval", "p", "better", "worse", "questions"]
    body = html.table(titles, rows, ["", *["right"] * (len(titles) - 1)])
    note = "In points of accuracy, on questions that both answered. Intervals draw images, so that questions about one "
    return html.section("Differences", note + "image count as one.", html.card("", body))


def _made(outcome: Outcome) -> Made:
    return Made(outcome.folder, outcome.artifact, None)


def _lineage(found: Found, row: Row, page: str) -> Markup:
    boxes: dict[str, lineage.Stage] = {}
    for each in row.stages.values():
        known = stage_page.box(found, each["id"], page)
        if known is not None:
            boxes[each["id"]] = known
    return (
        html.section("Lineage", "A box leads to its stage.", html.card("", lineage.draw(boxes))) if boxes else Markup()
    )


def _compare(page: str) -> Markup:
    target = links.href(page, links.COMPARE) + "#" + links.data_id(page)
    return html.render("site_links", items=[("compare with another run", target)])
