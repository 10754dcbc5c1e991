"""Commands that train nothing: merging, taking a projector out, converting, evaluating, averaging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vlmrun.errors import Problem
from vlmrun.importers.launch import Launch, table
from vlmrun.importers.meaning.draft import Account
from vlmrun.importers.meaning.family import is_training
from vlmrun.importers.shell import marks
from vlmrun.importers.snippets import read_snippet


@dataclass
class Product:
    """A stage that a command is: what it reads and writes, by path."""

    kind: str
    reads: list[str]
    writes: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Other:
    """What such a command means."""

    products: list[Product] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def unsettled(launch: Launch, number: int) -> list[Account]:
    """Accounts of a command that nothing can be said about."""
    flags = [*launch.flags, *(flag for link in launch.chain for flag in link.flags)]
    texts = [*((flag.line, flag.text) for flag in flags), *((launch.command.line, word) for word in launch.words)]
    return [Account(number, line, marks.shown(text), "unknown", "not settled: no family") for line, text in texts]


def recognize(launch: Launch, number: int, read_file: Callable[[str], str | None]) -> Other | None:
    """The stages a command is, by the name of its program or by the text of a snippet; None for a training."""
    other = Other()
    program = launch.program
    known = next((entry for name, entry in table("programs").items() if name in program), None)
    if known is None and is_training(launch):
        return None
    snippet = _snippet(launch, read_file) if known is None else None
    if known is not None:
        _known(launch, known, other)
    elif snippet is not None:
        found = read_snippet(snippet)
        other.products += [Product(item.kind, item.reads, item.writes, item.settings) for item in found]
        if not found:
            other.notes.append(f"line {launch.command.line}: Python that merges or averages nothing; passed over")
    else:
        name = launch.entry or (launch.chain[-1].name if launch.chain else "python")
        other.notes.append(f"line {launch.command.line}: {name} trains nothing that is known here; passed over")
    roles = known["flags"] if known else {}
    for flag in launch.flags:
        role = roles.get(flag.name.lstrip("-"))
        verdict, detail = _verdict(role, known, launch)
        if role == "greedy":
            zero = flag.values in (("0",), ("0.0",))
            verdict, detail = "no effect" if zero else "unsupported", "answers are greedy"
        other.accounts.append(Account(number, flag.line, marks.shown(flag.text), verdict, detail))
    for link in launch.chain:
        other.accounts += [
            Account(number, flag.line, flag.text, "no effect", "one process is enough") for flag in link.flags
        ]
    for word in launch.words:
        other.accounts.append(
            Account(number, launch.command.line, marks.shown(word), "unsupported", "a word of its own")
        )
    return other


def _snippet(launch: Launch, read_file: Callable[[str], str | None]) -> str | None:
    if launch.command.document is not None and not launch.entry.endswith(".py"):
        return launch.command.document
    argv = launch.command.argv
    if "-c" in argv and argv.index("-c") + 1 < len(argv):
        return argv[argv.index("-c") + 1]
    return read_file(launch.entry) if launch.entry.endswith(".py") else None


def _known(launch: Launch, entry: dict[str, Any], other: Other) -> None:
    values = {flag.name.lstrip("-"): " ".join(flag.values) for flag in launch.flags}
    roles: dict[str, str] = {}
    for name, role in entry["flags"].items():
        if name in values:
            roles.setdefault(role, values[name])
    if "reads" not in roles:
        return
    settings = dict(entry.get("settings", {}))
    if "template" in roles:
        names = table("flags")["templates"]
        found = names["llava"].get(roles["template"]) or names["bunny"].get(roles["template"])
        if found:
            settings["template"] = found
    if "base_model" in roles and entry["kind"] == "convert":
        settings["base_model"] = roles["base_model"]
    data = {}
    if entry["kind"] == "evaluate":
        data = {"annotations": roles.get("questions", ""), "images": roles.get("images")}
        if not data["annotations"]:
            return
    other.products.append(Product(entry["kind"], [roles["reads"]], roles.get("writes", ""), settings, data))


def _verdict(role: str | None, known: dict[str, Any] | None, launch: Launch) -> tuple[Any, str]:
    if known is None:
        return "unsupported", f"{launch.entry or 'the program'} is not run"
    if role is None:
        return "unknown", f"no flag of {launch.program} that is known here"
    details = {
        "reads": f"stage.{known['kind']}.init_from",
        "writes": "the stage's own artifact; later commands that read it start from this stage",
        "base": "the artifact knows its base",
        "base_model": "base_model",
        "questions": "data.NAME.annotations",
        "images": "data.NAME.images",
        "template": "template",
        "answers": "answers are in the stage's folder",
    }
    if role in details:
        return ("no effect" if role in ("base", "answers") else "taken"), details[role]
    return "unsupported", role
