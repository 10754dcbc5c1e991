"""The account of an import: for people, as JSON, and as a page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from vlmrun.errors import Problem
from vlmrun.importers.launch import Flag, Launch
from vlmrun.importers.meaning.draft import Account, Verdict, title
from vlmrun.importers.recipe import Plan
from vlmrun.importers.shell import marks
from vlmrun.importers.shell.commands import Reading

VERDICTS: tuple[Verdict, ...] = ("taken", "no effect", "differs", "unsupported", "unknown")


def counts(accounts: list[Account]) -> dict[str, int]:
    """Flags, or values of files, of each verdict; they add up to all of them."""
    found = Counter(account.verdict for account in accounts)
    return {verdict: found[verdict] for verdict in VERDICTS}


def as_json(plan: Plan, reading: Reading, problems: list[Problem], files: list[str]) -> str:
    """The account for a program. `commands` holds what would be started: flags in order, as [flag, [values]]."""
    content: dict[str, Any] = {
        "families": plan.families,
        "commands": [_command(launch) for launch in plan.launches],
        "flags": plan.flags,
        "counts": counts(plan.accounts),
        "accounts": [asdict(account) for account in plan.accounts],
        "file_values": {
            "values": plan.values,
            "counts": counts(plan.file_accounts),
            "accounts": [asdict(account) for account in plan.file_accounts],
        },
        "defaults": [{"flag": flag, "upstream": value, "key": key} for flag, value, key in plan.defaults],
        "unknown": [asdict(note) for note in reading.notes],
        "broken": [{"file": file, "line": item.line, "cause": item.cause} for file, item in reading.broken],
        "problems": [asdict(problem) for problem in problems],
        "notes": plan.notes,
        "recipes": [recipe.name for recipe in plan.recipes],
        "files": files,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _command(launch: Launch) -> dict[str, Any]:
    def flags(found: tuple[Flag, ...]) -> list[Any]:
        return [[flag.name, [marks.shown(value) for value in flag.values]] for flag in found]

    return {
        "file": launch.command.file,
        "line": launch.command.line,
        "program": launch.command.argv[0],
        "argv": [marks.shown(word) for word in launch.command.argv[1:]],
        "env": {name: marks.shown(value) for name, value in launch.command.env.items()},
        "chain": [{"launcher": link.name, "flags": flags(link.flags)} for link in launch.chain],
        "entry": marks.shown(launch.entry),
        "flags": flags(launch.flags),
    }


def _summary(accounts: list[Account]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in counts(accounts).items())


def as_text(plan: Plan, reading: Reading, files: list[str], *, everything: bool = False) -> str:
    """The account for people: all that is not simply taken, and everything on request."""
    lines = []
    for recipe in plan.recipes:
        stages = ", ".join(f"{stage.name}" for stage in recipe.stages)
        lines.append(f"recipe {recipe.name}: {stages}")
    families = ", ".join(dict.fromkeys(map(title, plan.families)))
    lines.append(f"{plan.flags} flags of {plan.commands} commands ({families}): {_summary(plan.accounts)}")
    if plan.values:
        lines.append(f"{plan.values} values in files beside the script: {_summary(plan.file_accounts)}")
    lines.append("")
    for account in (*plan.accounts, *plan.file_accounts):
        if everything or account.verdict not in ("taken", "no effect"):
            lines.append(f"  {account.verdict:12} line {account.line:<4} {account.flag}: {account.detail}")
    if plan.defaults:
        lines += ["", "not given, and ours differs from upstream's:"]
        lines += [f"  --{flag} (upstream {value}): {key} as in conf/" for flag, value, key in plan.defaults]
    if reading.notes:
        lines += ["", "not known without running it:"]
        lines += [f"  {note.file}, line {note.line}: {note.text}" for note in reading.notes]
    if plan.notes:
        lines += ["", "notes:", *(f"  {note}" for note in dict.fromkeys(plan.notes))]
    if files:
        lines += ["", *(f"wrote {file}" for file in files)]
    return marks.shown("\n".join(lines)) + "\n"
