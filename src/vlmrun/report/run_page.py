"""`report.html`: what a run made, in one file that needs no other and no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vlmrun import artifact, jsonl, kinds
from vlmrun.kinds.base import AnyKind
from vlmrun.names import HELD_OUT, METRICS, SCORES
from vlmrun.report import answers, benchmarks, search, svg, tables
from vlmrun.report import html as page
from vlmrun.report.run_table import Row, cells, columns, number, share_text, summary
from vlmrun.report.svg import Bar

if TYPE_CHECKING:
    from vlmrun.outcome import Outcome

NAME = "report.html"
_PICTURES = 12
_FILES_SHOWN = 40  # of one artifact; a prepared data set may have thousands
_MEASURES = (
    ("accuracy", "held-out images"),
    ("accuracy_unseen", "unseen combinations"),
    ("shuffled", "shuffled images"),
    ("chance", "chance: the most frequent answer"),
)


def write(run_folder: Path, title: str, outcomes: Sequence[Outcome]) -> Path:
    """Writes the report of a run; what is missing on disk is said in it, and stops nothing."""
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    rows = summary(outcomes)
    sections = [
        *(_facts(rows), _stages(rows), losses(outcomes)),
        *(*_scores(rows, outcomes), pictures(outcomes), _on_the_way(outcomes)),
        *(_lineage(outcomes), *origins(outcomes)),
    ]
    path = run_folder / NAME
    artifact.write_text(path, page.document(title, f"vlmrun report, {made}", [text for text in sections if text]))
    return path


def results(outcomes: Sequence[Outcome]) -> list[Markup]:
    """What came of the stages, in numbers."""
    rows = summary(outcomes)
    return [_facts(rows), _stages(rows), *_scores(rows, outcomes), _on_the_way(outcomes)]


def origins(outcomes: Sequence[Outcome]) -> list[Markup]:
    """Versions and digests."""
    return [_environment(outcomes), _digests(outcomes)]


def _scores(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[Markup]:
    return [_searches(outcomes), _benchmarks(outcomes), _accuracy(rows), _categories(outcomes)]


def _kind(outcome: Outcome) -> AnyKind:
    return kinds.of_artifact(outcome.artifact.kind)


def _facts(rows: Sequence[Row]) -> Markup:
    evaluated = [row for row in rows if "accuracy" in row.numbers]
    items = [(str(len(rows)), "stage" if len(rows) == 1 else "stages")]
    if any(row.reused for row in rows):
        items.append((str(sum(row.reused for row in rows)), "of them reused"))
    items.append((f"{sum(row.seconds or 0 for row in rows):.0f} s", "in all stages"))
    if evaluated:
        last = evaluated[-1]
        items.append((share_text(last.numbers["accuracy"]), f"accuracy in {last.name}"))
        items += [
            (share_text(last.numbers[key]), what)
            for key, what in (("accuracy_unseen", "unseen combinations"), ("chance", "chance"))
            if key in last.numbers
        ]
    return page.facts(items)


def _stages(rows: Sequence[Row]) -> Markup:
    lines, titled = cells(rows), columns(rows)
    kept = [place for place in range(len(titled)) if any(line[place] for line in lines)]
    styles = ["right" if titled[place].right else "path" if titled[place].title == "artifact" else "" for place in kept]
    titles = [titled[place].title for place in kept]
    body = page.table(titles, [[line[place] for place in kept] for line in lines], styles)
    return page.section("Stages", "", page.card("", body)) if lines else Markup()


def losses(outcomes: Sequence[Outcome]) -> Markup:
    """The loss curve of every training."""
    cards = []
    for outcome in outcomes:
        if not _kind(outcome).trains:
            continue
        points = [_point(row) for row in jsonl.rows(outcome.folder / METRICS)]
        steps = number(outcome.artifact.summary, "steps")
        note = "" if steps is None else f"{steps:.0f} steps"
        tried = [_point(row) for row in jsonl.rows(outcome.folder / HELD_OUT)]
        curve = svg.curve([point for point in points if point], outcome.name, [point for point in tried if point])
        cards.append(page.card(outcome.name, curve, note))
    note = (
        "Faint: the loss of every step (of a long run, means of a few). Strong: smoothed. In figures: the last step's. "
        "Dots: on held-out data, where a stage asks for it."
    )
    return page.section("Loss", note, page.charts(cards)) if cards else Markup()


def _point(row: dict[str, Any]) -> tuple[float, float | None] | None:
    step = number(row, "step")
    return None if step is None else (step, number(row, "loss"))


def _searches(outcomes: Sequence[Outcome]) -> Markup:
    cards = [page.card(outcome.name, body) for outcome in outcomes if (body := search.show(outcome.folder))]
    note = "Every point is an average of the same models, asked the same questions; the best one is the stage's model."
    return page.section("Search", note, *cards)


def _benchmarks(outcomes: Sequence[Outcome]) -> Markup:
    found = [benchmarks.show(item.name, item.folder) for item in outcomes]
    if not any(found):
        return Markup()
    note = "Plain reading; images are drawn as wholes for the intervals. Scores of one protocol can be compared."
    return page.section("Benchmarks", note, *filter(None, found))


def _accuracy(rows: Sequence[Row]) -> Markup:
    measured = [(name, label) for name, label in _MEASURES if any(name in row.numbers for row in rows)]
    groups = [
        (row.name, [Bar(label, row.numbers.get(name), name) for name, label in measured])
        for row in rows
        if kinds.of_artifact(row.kind).answers and "accuracy" in row.numbers
    ]
    if not groups:
        return Markup()
    note = "Exact match. A model that does not look does no better with its own images than with shuffled ones."
    return page.section("Accuracy", note, page.card("", page.legend(measured) + svg.bars(groups)))


def _categories(outcomes: Sequence[Outcome]) -> Markup:
    """Categories down, evaluated models across, chance beside them."""
    seen = {item.name: _seen(item.folder) for item in outcomes if _kind(item).answers}
    seen = {name: found for name, found in seen.items() if found}
    if not seen:
        return Markup()
    names = list(dict.fromkeys(category for found in seen.values() for category in found))
    lines = []
    for category in names:
        parts = [found.get(category, {}) for found in seen.values()]
        known = next((part for part in parts if part), {})
        count = number(known, "n_questions")
        shares = [share_text(number(part, "accuracy")) for part in parts]
        lines.append([category, "" if count is None else f"{count:.0f}", share_text(number(known, "chance")), *shares])
    titles = ["category", "questions", "chance", *seen]
    styles = ["", "right", "right", *["right heat"] * len(seen)]
    body = page.table(titles, lines, styles)
    return page.section("Accuracy by category", "Held-out images, without unseen combinations.", page.card("", body))


def _seen(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        categories = json.loads((folder / SCORES).read_text("utf-8"))["seen"]["categories"]
        return {name: part for name, part in categories.items() if isinstance(part, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def pictures(outcomes: Sequence[Outcome]) -> Markup:
    """Some answers of the last evaluation: in a recipe's order, that of its final model."""
    evaluated = [outcome for outcome in outcomes if _kind(outcome).answers]
    if not evaluated:
        return Markup()
    shown, total = answers.show(evaluated[-1].folder, _PICTURES)
    whose = f"{len(shown)} of {total} answers in {evaluated[-1].name}."
    note = f"{whose} Wrong ones are shown more often than they occur: up to a third."
    return page.section("Pictures", note, page.gallery(shown))


def _on_the_way(outcomes: Sequence[Outcome]) -> Markup:
    """Answers that the last evaluation of each training generated, beside how many were right at which step."""
    cards = []
    for outcome in outcomes:
        shown, step = answers.tried(outcome.folder, _PICTURES)
        if shown:
            shares = [
                f"step {row.get('step')}: {share_text(number(row, 'exact_match'))}"
                for row in jsonl.rows(outcome.folder / HELD_OUT)
            ]
            cards.append(page.card(f"{outcome.name}, step {step}", page.gallery(shown), "right: " + ", ".join(shares)))
    return page.section("Answers during training", "On held-out data.", *cards)


def _lineage(outcomes: Sequence[Outcome]) -> Markup:
    lines = []
    for outcome in outcomes:
        made = outcome.artifact
        parents = ", ".join(f"{parent.name}-{parent.key}" for parent in made.parents)
        lines.append([f"{made.name}-{made.key}", made.kind, parents or "none", tables.local_time(made.created)])
    body = page.table(["artifact", "kind", "made from", "created"], lines)
    return page.section("Lineage", "", page.card("", body)) if lines else Markup()


def _environment(outcomes: Sequence[Outcome]) -> Markup:
    """One column where all stages agree, as they do unless an old one was reused."""
    found: dict[str, dict[str, list[str]]] = {}
    for outcome in outcomes:
        versions = {"vlmrun": outcome.artifact.version, **outcome.artifact.environment}
        for library, version in versions.items():
            found.setdefault(library, {}).setdefault(version, []).append(outcome.name)
    lines = []
    for library, by_version in found.items():
        alone = len(by_version) == 1
        lines += [[library, version, "" if alone else ", ".join(stages)] for version, stages in by_version.items()]
    body = page.table(["library", "version", "stages, where they differ"], lines)
    return page.section("Environment", "", page.fold("Versions", body)) if lines else Markup()


def _digests(outcomes: Sequence[Outcome]) -> Markup:
    folds = []
    for outcome in outcomes:
        files = outcome.artifact.files
        lines = [
            [name, tables.bytes_text(file.n_bytes), file.sha256] for name, file in list(files.items())[:_FILES_SHOWN]
        ]
        body = page.table(["file", "size", "SHA-256"], lines, ["", "right", "path"])
        if len(files) > _FILES_SHOWN:
            body += page.note(f"and {len(files) - _FILES_SHOWN} more, listed in {artifact.NAME}")
        total = tables.bytes_text(sum(file.n_bytes for file in files.values()))
        folds.append(page.fold(f"{outcome.name}: {len(files)} file{'' if len(files) == 1 else 's'}, {total}", body))
    return page.section("Files", "", *folds)
