"""What became of every value in the files beside a script: a DeepSpeed JSON, accelerate's YAML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vlmrun.errors import Problem, closest
from vlmrun.importers.launch import table
from vlmrun.importers.meaning.draft import Account, Draft, Verdict

AUTO = "auto"
_KINDS = {"count": "whole number", "bool": "Boolean", "text": "path"}
Answer = tuple[Verdict, str]


def settle(draft: Draft) -> None:
    """One account for every value; keys that only a file can give are set."""
    for kind, path, content in draft.files:
        for name, value in values(content):
            verdict, detail = _answer(draft, kind, name, value)
            flag = draft.given.get("deepspeed")
            line = flag.line if flag else draft.launch.command.line
            shown = f"{path} {name} {_text(value)}"
            draft.file_accounts.append(Account(draft.number, line, shown, verdict, detail))


def values(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value with its path, in the file's order; an empty block is one."""
    open_ = list(reversed(content.items()))
    while open_:
        name, value = open_.pop()
        if isinstance(value, dict) and value:
            open_ += [(f"{name}.{inner}", below) for inner, below in reversed(value.items())]
        else:
            yield str(name), value


def _answer(draft: Draft, kind: str, name: str, value: Any) -> Answer:
    known = table("files")[kind]
    entry = known.get(name) or next(
        (found for pattern, found in known.items() if pattern.endswith(".*") and f"{name}.".startswith(pattern[:-1])),
        None,
    )
    if value == {}:
        return "no effect", "an empty block"
    if entry is None:
        block, _, last = name.rpartition(".")
        near = closest(last, [path.rpartition(".")[2] for path in known if path.rpartition(".")[0] == block])
        return "unknown", f"no value of {kind} that is known here" + (f"; {near} is near" if near else "")
    if "same" in entry:
        return _same(draft, entry["same"], value)
    if "only" in entry:
        allowed = entry["only"] if isinstance(entry["only"], list) else [entry["only"]]
        fits = value == AUTO or any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed
        )
        return ("no effect", "the same here") if fits else ("unsupported", entry["without"])
    if "key" in entry:
        return _taken(draft, entry, name, value)
    if "taken" in entry:
        counts = draft.accelerate.get(name.rpartition(".")[2]) == str(value)
        return ("taken", "as the flag of this name") if counts else ("no effect", "the launcher's own flag counts")
    if "no_effect" in entry:
        return "no effect", entry["no_effect"]
    return "unsupported", entry["without"]


def _same(draft: Draft, what: str, value: Any) -> Answer:
    """A value that flags, or this file, have decided already."""
    if what == "scheduler":
        quirk = "stage.compat.offload_schedule"
        if quirk in draft.settings:
            return "taken", f"{quirk}: true"
        return "differs", "the schedule is the script's, as its notes say; this block took its place upstream"
    key, ours = _ours(draft, what)
    shown = f"{key}: {_shown(draft.settings[key].value if key in draft.settings else ours)}"
    if value in (AUTO, ours):
        return "taken", f"{shown}, as the flags say" if value == AUTO else shown
    why = "transformers stops when they differ" if what in _FLAGS else "the reason stands with the flag"
    return "differs", f"{shown}, not {_shown(value)}; {why}"


_FLAGS = {"stage.global_batch", "stage.micro_batch", "accumulation", "bf16", "fp16", "stage.optim.lr",
          "stage.optim.betas", "stage.optim.eps", "stage.optim.weight_decay"}  # fmt: skip


def _ours(draft: Draft, what: str) -> tuple[str, Any]:
    """The key that says it, and its value as the file would write it."""

    def of(key: str) -> Any:
        return draft.settings[key].value if key in draft.settings else None

    if what == "accumulation":
        ranks = (of("hardware.nodes") or 1) * (of("hardware.ranks_per_node") or 1)
        return "accumulation", (of("stage.global_batch") or 0) // ((of("stage.micro_batch") or 1) * ranks)
    if what in ("bf16", "fp16"):
        return "hardware.precision", of("hardware.precision") == what
    if what == "parameters":
        own = of("stage.deepspeed.offload_param")
        return "stage.deepspeed.offload_param", of("stage.offload") if own is None else own
    if what == "cpu_offload":
        return "stage.offload", of("stage.offload") == "cpu"
    return what, of(what)


def _taken(draft: Draft, entry: dict[str, Any], name: str, value: Any) -> Answer:
    """A value that becomes a key of its own; "auto" leaves ours, which is what transformers fills in."""
    key, kind = entry["key"], entry["kind"]
    if value == AUTO:
        return "taken", f"{key}: as transformers fills it in"
    if kind == "count" and isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0:
        value = int(value)
    fits = {"count": type(value) is int, "bool": isinstance(value, bool), "text": isinstance(value, str)}[kind]
    if not fits:
        what = f"{name} is {_text(value)}, not a {_KINDS[kind]}"
        draft.problems.append(Problem(what, draft.where("deepspeed"), "correct the file"))
        return "unknown", "not settled: of the wrong kind"
    before = draft.settings.get(key)
    if before is not None and before.source.startswith("of the file") and before.value != value:
        return "differs", f"{key}: {_shown(before.value)}, one value for both"
    draft.set(key, value, note=f"of the file: {name}")
    return "taken", f"{key}: {_shown(value)}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _shown(value: Any) -> str:
    return _text(value).strip('"')
