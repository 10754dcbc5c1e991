"""Writes the site: only pages whose inputs changed since they were written, each as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlmrun import __version__, locks
from vlmrun.errors import LaunchError
from vlmrun.run import record
from vlmrun.site import found as finding
from vlmrun.site import lines, links, pages, run_pages, stage_page
from vlmrun.site.found import Found, Row

_STATE = ".state.json"
_ASSETS = ("uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE", "site.css", "site.js", "charts.js", "answers.js",
           "compare.js")  # fmt: skip
_MOST_USERS = 51


@dataclass
class Built:
    """What a build did: pages written and kept, files removed, what could not be read."""

    home: Path
    written: int = 0
    kept: int = 0
    removed: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Page:
    """Files of one page, what they are made from, and how; None: what it shows is gone meanwhile."""

    names: tuple[str, ...]
    inputs: Any
    make: Callable[[], tuple[str, ...] | None]


def build(root: Path) -> Built:
    """Brings the site of an output root up to date; pages of what is gone are removed.

    Raises:
        LaunchError: when the output root is not there, or its folder `site` is somebody else's.
        OSError: when the site's folder cannot be written.
    """
    if not root.is_dir():
        raise LaunchError(f"there is no folder {root}", "--output", "the output root of your runs; a run makes it")
    place = root / links.FOLDER
    place.mkdir(exist_ok=True)
    with locks.alone(place):
        _require_ours(place)
        state = lines.read_json(place / _STATE)
        known = (state.get("code") == _code() and state) or {}
        found = finding.look(root.resolve(), known.get("rows") or {})
        built = Built(place / links.HOME, problems=found.problems)
        old, after = _pages_of(state), dict[str, str]()
        before = old if known else {}
        for page in _pages(found):
            digest = _digest(page.inputs)
            if before.get(page.names[0]) == digest and all((place / name).is_file() for name in page.names):
                built.kept += 1
            else:
                texts, fault = _make(page)
                if texts is None:
                    continue
                if fault:
                    built.problems.append(f"{page.names[0]} {fault}")
                    digest = ""  # tried again by the next build
                for name, text in zip(page.names, texts, strict=True):
                    _write(place / name, text)
                built.written += 1
            after |= dict.fromkeys(page.names, digest)
        for name in old.keys() - after.keys():
            built.removed += _remove(place, name)
        _write(place / _STATE, json.dumps({"code": _code(), "pages": after, "rows": finding.remember(found)}))
    return built


def _require_ours(place: Path) -> None:
    """Marks a new folder as the site's, so that a build that is ended early leaves one that is known."""
    if (place / _STATE).is_file():
        return
    if any(not item.name.startswith(f".{_STATE}.") for item in place.iterdir()):
        what = "this folder is not a site that vlmrun wrote, so it is left alone"
        raise LaunchError(what, str(place), "move it away, or give runs a root of their own: output=FOLDER (--output)")
    _write(place / _STATE, "{}")


def _pages_of(state: dict[str, Any]) -> dict[str, str]:
    found = state.get("pages")
    return found if isinstance(found, dict) else {}


def _pages(found: Found) -> Iterator[_Page]:
    users: dict[str, list[Row]] = {}
    for row in found.rows:
        for each in row.stages.values():
            users.setdefault(each["id"], []).append(row)
    stamps = {name: finding.stage_stamp(found, name) for name in found.stages}
    for name in found.stages:
        yield _stage(found, name, users.get(name, []), stamps[name])
    for row in found.rows:
        yield _run(found, row, [stamps.get(each["id"]) for each in row.stages.values()])
    for name, rows in pages.sweeps(found).items():
        yield _Page((links.sweep(name),), [asdict(row) for row in rows], lambda n=name, r=rows: (pages.sweep(n, r),))  # type: ignore[misc]
    known = {row.label: links.data_id(links.run(row.folder)) for row in found.rows}
    yield _Page(("runs.js",), known, lambda: (stage_page.script("runs.html", known),))
    yield _Page((links.COMPARE,), None, lambda: (pages.compare(),))
    everything = [[asdict(row) for row in found.rows], found.problems]
    yield _Page((links.HOME,), everything, lambda: (pages.home(found),))
    static = files("vlmrun.report").joinpath("static")
    for name in _ASSETS:
        yield _Page((f"assets/{name}",), None, lambda n=name: (static.joinpath(n).read_text("utf-8"),))  # type: ignore[misc]
    style = files("vlmrun.report").joinpath("templates", "report.css")
    yield _Page(("assets/report.css",), None, lambda: (style.read_text("utf-8"),))


def _stage(found: Found, name: str, users: list[Row], stamp: Any) -> _Page:
    page = links.stage(name)
    inputs = [stamp, [[row.label, row.state] for row in users[:_MOST_USERS]], len(users)]

    def make() -> tuple[str, ...] | None:
        return stage_page.make(found, name, users) if found.stages[name].is_dir() else None

    return _Page((page, links.data(page)), inputs, make)


def _run(found: Found, row: Row, stamps: Any) -> _Page:
    page = links.run(row.folder)

    def make() -> tuple[str, ...] | None:
        one = record.read(found.root / row.folder)
        return run_pages.make(found, row, one) if one is not None and one.launches else None

    return _Page((page, links.data(page)), [found.stamps[row.label], row.state, stamps], make)


def _make(page: _Page) -> tuple[tuple[str, ...] | None, str]:
    """A page's texts, and why they only say that it cannot be shown: that does not cost the other pages."""
    try:
        return page.make(), ""
    except Exception as error:  # noqa: BLE001 - damaged data raises anything, and folders vanish beside us
        fault = f"cannot be shown: {type(error).__name__}: {error}"
        text = pages.document(page.names[0], page.names[0], fault, [])
        return (text, *[""] * (len(page.names) - 1)), fault


def _write(path: Path, text: str) -> None:
    """Whole or not at all; not synced, for it can be made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8", errors="replace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove(place: Path, name: str) -> int:
    """Removes a page that the state names. The state is data: what is not below the site, links followed, is kept."""
    path = place / name
    try:
        if ".." in path.parts or not path.parent.resolve().is_relative_to(place.resolve()) or not path.is_file():
            return 0
        path.unlink()
    except (OSError, RuntimeError, ValueError):  # no name of a file, a circle of links, gone meanwhile
        return 0
    return 1


def _digest(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """Of all that pages are made by."""
    found = hashlib.sha256(__version__.encode())
    for folder in (files("vlmrun.report"), files("vlmrun.report").joinpath("templates"), files("vlmrun.site")):
        for item in sorted(folder.iterdir(), key=lambda item: item.name):
            if item.is_file():
                found.update(item.read_bytes())
    for name in _ASSETS:
        found.update(files("vlmrun.report").joinpath("static", name).read_bytes())
    return found.hexdigest()[:16]
