"""`vlmrun runs`: what was run, how it ended, and what came of it; with tags and notes of one's own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from vlmrun import kinds, logs, store
from vlmrun.cli.options import new_parser, output_option
from vlmrun.errors import CheckpointError, ConfigError, LaunchError, suggest
from vlmrun.names import RUN_CONFIG
from vlmrun.report import tables
from vlmrun.report.run_table import loss_text, number, share_text
from vlmrun.report.tables import Column, Grid
from vlmrun.run import filters, numbers, record
from vlmrun.run.record import Record

log = logs.get(__name__)

_STATES = ("running", "finished", "failed", "stopped", "interrupted")
_EXAMPLES = """\
vlmrun runs                         all runs, oldest first
vlmrun runs smoke --state failed    those of a name that failed
vlmrun runs --where 'stage.lora.optim.lr>1e-4' \\
  --where 'eval_merge.accuracy>=0.9'
vlmrun runs show smoke/2            one run: command, code, machine
vlmrun runs tag smoke/2 baseline    --tag baseline then lists it
vlmrun runs note smoke/2 "the first that learns"
vlmrun runs archive smoke/1         out of the list; --all shows it
vlmrun runs remove smoke/1          record and report; then: vlmrun gc
"""
Change = Callable[[Record, list[str]], None]


def main(arguments: list[str]) -> int:
    """Lists runs, shows one, or changes what is noted of one."""
    parser = new_parser("runs", "Runs: list, filter, show, tag, note, archive, remove.", _EXAMPLES)
    parser.add_argument("words", nargs="*", metavar="NAME | VERB RUN", help="see the examples")
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION", help="KEY or STAGE.NUMBER, = < >")
    parser.add_argument("--state", choices=_STATES)
    parser.add_argument("--tag", help="only runs that have it")
    parser.add_argument("--all", action="store_true", help="archived runs too")
    parser.add_argument("--force", action="store_true", help="remove: also a run that says it is running")
    parser.add_argument("--json", action="store_true", help="machine-readable, with the composed config")
    output_option(parser)
    options = parser.parse_args(arguments)
    root = Path(options.output)
    verb, *rest = options.words or [""]
    if verb == "show" and len(rest) == 1:
        _show(*find(root, rest[0]), as_json=options.json)
    elif verb in _CHANGES and rest:
        _change(root, verb, rest)
    elif verb == "remove" and len(rest) == 1:
        _remove(root, *find(root, rest[0]), force=options.force)
    elif len(options.words) <= 1:
        _list(_chosen(root, verb, options), as_json=options.json)
    else:
        parser.error(f"not a name, nor one of show, {', '.join(_CHANGES)}, remove and a run: {' '.join(options.words)}")
    return 0


def find(root: Path, reference: str) -> tuple[Path, Record]:
    """A run by `NAME` (its newest), `NAME/NUMBER` or folder.

    Raises:
        CheckpointError: with the nearest names when there is none.
    """
    folder = store.find_run(root, reference)
    found = None if folder is None else record.read(folder)
    if folder is None or found is None:
        raise _unknown(root, reference)
    n_runs = len(numbers.numbered(folder.parent)) if folder.parent == (root / "runs" / reference).resolve() else 1
    if n_runs > 1:
        log.warning("%s: %s, the newest of %d runs of this name", reference, label(root, folder), n_runs)
    return folder, found


def _unknown(root: Path, reference: str) -> CheckpointError:
    known = {name for folder, one in record.all_of(root) for name in (label(root, folder), one.name)}
    return CheckpointError(f"no run {reference!r}", str(root / "runs"), suggest(reference, known, noun="runs"))


def label(root: Path, folder: Path) -> str:
    """A run as it is called: `NAME/NUMBER`, or the folder of a sweep's point."""
    place = os.path.relpath(folder, root.resolve() if folder.is_absolute() else root)
    return place.removeprefix("runs" + os.sep)


def _chosen(root: Path, name: str, options: argparse.Namespace) -> list[tuple[str, Record]]:
    """The runs that are asked for, oldest first.

    Raises:
        CheckpointError: when no run is called so.
        ConfigError: for a condition that is none, or whose key no run has.
    """
    known = sorted(
        ((label(root, folder), one) for folder, one in record.all_of(root)), key=lambda pair: pair[1].last.started
    )
    named = [(each, one) for each, one in known if name in ("", one.name, each)]
    if name and not named:
        raise _unknown(root, name)
    conditions = [filters.parse(text) for text in options.where]
    for condition in conditions:
        if named and not any(condition.is_about(one) for _, one in named):
            fix = "a key of the composed config (vlmrun runs show NAME --json), or STAGE.NUMBER"
            raise ConfigError(f"no run has {condition.key!r}", "--where", fix)
    return [
        (each, one)
        for each, one in named
        if (options.all or not one.archived)
        and options.state in (None, one.state)
        and (options.tag is None or options.tag in one.tags)
        and all(condition.holds(one) for condition in conditions)
    ]


def _list(found: list[tuple[str, Record]], *, as_json: bool) -> None:
    if as_json:
        rows = [{"run": name, **one.model_dump(mode="json"), "state": one.state} for name, one in found]
        json.dump(rows, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
        return
    if not found:
        sys.stderr.write("no run is like that; --all includes archived runs, vlmrun +recipe=smoke makes a run\n")
        return
    columns = (
        *(Column("run"), Column("started"), Column("state"), Column("stages", right=True), Column("loss", right=True)),
        *(Column("accuracy", right=True), Column("tags"), Column("overrides", below=True), Column("note", below=True)),
    )
    styles = [{"failed": "red", "interrupted": "red", "stopped": "dim"}.get(one.state, "") for _, one in found]
    tables.write(Grid("", columns, [_line(name, one) for name, one in found], styles), sys.stdout)


def _line(name: str, one: Record) -> list[str]:
    losses = [number(stage.numbers, "loss") for stage in one.stages.values() if kinds.of_artifact(stage.kind).trains]
    scores = [number(stage.numbers, "accuracy") for stage in one.stages.values()]
    return [
        name,
        tables.local_time(one.last.started),
        one.state,
        str(len(one.stages)),
        loss_text(next((loss for loss in reversed(losses) if loss is not None), None)),
        share_text(next((score for score in reversed(scores) if score is not None), None)),
        " ".join(one.tags),
        " ".join(one.overrides),
        one.note,
    ]


def _show(folder: Path, one: Record, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(one.model_dump_json(indent=2) + "\n")
        return
    lines = [("folder", tables.shown(folder)), ("state", one.state), ("tags", " ".join(one.tags)), ("note", one.note)]
    for place, launch in enumerate(one.launches, 1):
        ended = "" if launch.ended is None else f" to {tables.local_time(launch.ended)}"
        lines.append((f"launch {place}", f"{tables.local_time(launch.started)}{ended}, {launch.state}"))
    last = one.last
    lines += [("command", last.command), ("started in", last.folder), ("machine", last.host)]
    lines += [("GPUs", ", ".join(last.gpus)), ("error", last.error or "")]
    lines.append(("versions", ", ".join(f"{name} {version}" for name, version in last.versions.items())))
    if last.code is not None:
        changed = last.code.get("changed") or []
        where = f" ({last.code['patch']})" if last.code.get("patch") else ""
        dirty = f", {len(changed)} files differ from it{where}" if changed else ""
        lines.append(("code", f"{last.code.get('commit')}{dirty}"))
    for name, value in lines:
        if value:
            sys.stdout.write(f"{name:11} {value}\n")
    rows = [[name, stage.key, stage.kind, "reused" if stage.reused else "made"] for name, stage in one.stages.items()]
    if rows:
        sys.stdout.write("\n")
        tables.write(Grid("", [Column("stage"), Column("key"), Column("kind"), Column("")], rows), sys.stdout)


def _change(root: Path, verb: str, words: list[str]) -> None:
    folder, _ = find(root, words[0])
    record.change(folder, lambda one: _CHANGES[verb](one, words[1:]))


def _tag(one: Record, words: list[str]) -> None:
    one.tags = list(dict.fromkeys([*one.tags, *words]))


def _untag(one: Record, words: list[str]) -> None:
    one.tags = [tag for tag in one.tags if tag not in words]


def _note(one: Record, words: list[str]) -> None:
    one.note = " ".join(words)


def _archive(one: Record, words: list[str]) -> None:
    one.archived = True


def _unarchive(one: Record, words: list[str]) -> None:
    one.archived = False


_CHANGES: dict[str, Change] = {
    "tag": _tag,
    "untag": _untag,
    "note": _note,
    "archive": _archive,
    "unarchive": _unarchive,
}


def _remove(root: Path, folder: Path, one: Record, *, force: bool) -> None:
    """Removes a run's own folder; the stages in it are links."""
    if one.state == "running" and not force:
        fix = "stop it first; if it runs no more, as on a machine that is gone: --force"
        raise LaunchError("the run has not ended", str(folder), fix)
    if numbers.numbered(folder):  # made before runs had numbers: other runs are inside
        for name in (RUN_CONFIG, record.NAME, "report.html", "stages"):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif not path.is_symlink():
                path.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder)
    if folder.parent.parent == (root / "runs").resolve():
        _lead_on(folder.parent)
    sys.stderr.write(f"removed {tables.shown(folder)}; vlmrun gc lists the stages that no run needs now\n")


def _lead_on(base: Path) -> None:
    """Links of a name lead to its newest run again."""
    for link in base.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()
    if others := numbers.numbered(base):
        numbers.lead_to(others[-1])
