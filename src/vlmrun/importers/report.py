"""The account of an import: for people, as JSON, and as a page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from vlmrun.importers.meaning.draft import Verdict, title
from vlmrun.importers.recipe import Plan
from vlmrun.importers.shell import marks
from vlmrun.importers.shell.commands import Reading

VERDICTS: tuple[Verdict, ...] = ("taken", "no effect", "differs", "unsupported", "unknown")


def counts(plan: Plan) -> dict[str, int]:
    """Flags of each verdict; they add up to all flags."""
    found = Counter(account.verdict for account in plan.accounts)
    return {verdict: found[verdict] for verdict in VERDICTS}


def as_json(plan: Plan, reading: Reading, files: list[str]) -> str:
    """The account for a program."""
    content: dict[str, Any] = {
        "families": plan.families,
        "commands": plan.commands,
        "flags": plan.flags,
        "counts": counts(plan),
        "accounts": [asdict(account) for account in plan.accounts],
        "defaults": [{"flag": flag, "upstream": value, "key": key} for flag, value, key in plan.defaults],
        "unknown": [asdict(note) for note in reading.notes],
        "broken": [{"file": file, "line": item.line, "cause": item.cause} for file, item in reading.broken],
        "notes": plan.notes,
        "recipes": [recipe.name for recipe in plan.recipes],
        "files": files,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_text(plan: Plan, reading: Reading, files: list[str], *, everything: bool = False) -> str:
    """The account for people: all that is not simply taken, and everything on request."""
    lines = []
    for recipe in plan.recipes:
        stages = ", ".join(f"{stage.name}" for stage in recipe.stages)
        lines.append(f"recipe {recipe.name}: {stages}")
    families = ", ".join(dict.fromkeys(map(title, plan.families)))
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts(plan).items())
    lines += [f"{plan.flags} flags of {plan.commands} commands ({families}): {summary}", ""]
    for account in plan.accounts:
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
