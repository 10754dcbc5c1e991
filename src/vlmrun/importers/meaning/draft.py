"""One training command on its way to a stage: every flag is settled once, every value knows where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmrun.errors import Problem, closest
from vlmrun.importers.launch import Flag, Launch, table
from vlmrun.importers.shell import marks

Verdict = Literal["taken", "no effect", "differs", "unsupported", "unknown"]
_TRUE, _FALSE = {"true", "yes", "t", "y", "1"}, {"false", "no", "f", "n", "0"}


@dataclass(frozen=True)
class Options:
    """What the user says besides the script."""

    gpus: int | None = None  # ranks per node, where the script leaves it to the machine
    quirks: bool = False  # take published quirks along (`compat`)
    family: str | None = None


@dataclass(frozen=True)
class Setting:
    """A value of the recipe. Keys of the stage begin with `stage.`, its own name left out."""

    key: str
    value: Any
    source: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Account:
    """What became of one flag."""

    command: int
    line: int
    flag: str
    verdict: Verdict
    detail: str


@dataclass
class Draft:
    """A training command's flags, and what they have become so far."""

    launch: Launch
    family: str
    number: int  # of the command, from 1
    options: Options
    read_file: Callable[[str], str | None] = lambda path: None  # a file beside the script, or one it writes
    settings: dict[str, Setting] = field(default_factory=dict)
    groups: dict[str, Setting] = field(default_factory=dict)  # model/llm, model/tower, model/connector
    own_parts: dict[str, dict[str, Any]] = field(default_factory=dict)  # tower/NAME: an entry to be written
    data: dict[str, dict[str, Any]] = field(default_factory=dict)  # role (train, eval) -> annotations, images, format
    kind: str = "instruct"
    starts: list[str] = field(default_factory=list)  # paths it begins from, most telling first
    writes: str = ""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    defaults: list[tuple[str, Any, str]] = field(default_factory=list)  # not given: flag, upstream's default, key
    launched: dict[str, tuple[Verdict, str]] = field(default_factory=dict)  # of launchers' options, where it is special
    accelerate: dict[str, str] = field(default_factory=dict)  # values of accelerate's options and file
    files: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # kind, path, content: read beside it
    file_accounts: list[Account] = field(default_factory=list)  # of every value in them
    _settled: dict[str, list[tuple[Verdict, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table = known(self.family)
        self.given: dict[str, Flag] = {}
        self.repeated: list[tuple[Flag, int]] = []
        self.foreign: list[Flag] = []
        for flag in self.launch.flags:
            name = spelled(flag.name, self.table, self.launch.shortened)
            if name is None:
                self.foreign.append(flag)
                continue
            if name in self.given:
                self.repeated.append((self.given[name], flag.line))
            self.given[name] = flag

    # -- reading flags

    def where(self, name: str) -> str:
        """The place of a flag, for people."""
        flag = self.given.get(name)
        line = flag.line if flag else self.launch.command.line
        return f"{self.launch.command.file}, line {line}: {flag.text if flag else self.launch.entry}"

    def text(self, name: str) -> str | None:
        """A flag's value, else upstream's default; None for neither, and for what only a program knows."""
        flag = self.given.get(name)
        if flag is None:
            default = self.table.get(name, {}).get("default")
            return None if default is None else str(default)
        if not flag.values:
            self._problem(
                name,
                f"--{name} has no value",
                "a variable that is set nowhere? --env NAME=VALUE; an argument? --arg VALUE",
            )
            return None
        if len(flag.values) > 1:
            self._problem(name, f"--{name} takes one value and has {len(flag.values)}", "quote it, or use --as-meant")
        value = flag.values[0]
        if marks.is_unknown(value):
            self.settle(name, "unknown", f"{marks.shown(value)} is known only by running it")
            return None
        return value

    def number_of(self, name: str, kind: Callable[[str], Any] = float) -> Any:
        """A flag's value as a number."""
        text = self.text(name)
        if text is None:
            return None
        try:
            return kind(text)
        except ValueError:
            self._problem(name, f"{text!r} is no {kind.__name__}", "correct the script")
            return None

    def boolean(self, name: str) -> bool:
        """A flag as transformers' parser reads Booleans: without a value it is true."""
        flag = self.given.get(name)
        text = (
            str(self.table.get(name, {}).get("default", False)) if flag is None else "true" if not flag.values else None
        )
        if text is None:
            text = self.text(name)
        word = (text or "false").lower()
        if word not in _TRUE | _FALSE:
            self._problem(name, f"--{name} is true or false, not {text!r}", "correct the script")
        return word in _TRUE

    def _problem(self, name: str, what: str, fix: str) -> None:
        problem = Problem(what, self.where(name), fix)
        if problem not in self.problems:
            self.problems.append(problem)

    # -- settling them

    def set(self, key: str, value: Any, *flags: str, note: str = "") -> None:
        """A value of the recipe; the flags behind it are taken."""
        given = [self.given[name] for name in flags if name in self.given]
        if given:
            source = f"line {given[0].line}: {' '.join(flag.text for flag in given)}"
        else:
            source = note or (
                f"default of {title(self.family)}" + (f" (--{flags[0]})" if flags and flags[0] in self.table else "")
            )
        self.settings[key] = Setting(key, value, f"{source}; {note}" if note and given else source, flags)
        for name in flags:
            self.settle(name, "taken", f"{key}: {value}" if not note else f"{key}: {value} ({note})")

    def group(self, name: str, option: str, *flags: str) -> None:
        """Chooses an option of a group of the model."""
        given = [self.given[flag] for flag in flags if flag in self.given]
        source = f"line {given[0].line}: {given[0].text}" if given else f"default of {title(self.family)}"
        self.groups[name] = Setting(f"model/{name}", option, source, flags)
        for flag in flags:
            self.settle(flag, "taken", f"model/{name}: {option}")

    def settle(self, name: str, verdict: Verdict, detail: str) -> None:
        """Notes what became of a flag, if it was given."""
        if name in self.given:
            self._settled.setdefault(name, []).append((verdict, detail))

    def differ(self, name: str, key: str, value: Any, why: str) -> None:
        """A flag whose value is another one here."""
        flag = self.given.get(name)
        asked = " ".join(flag.values) or "asks for it" if flag else self.table.get(name, {}).get("default")
        self.settings[key] = Setting(key, value, f"--{name} {asked} upstream; {why}", (name,))
        self.settle(name, "differs", f"{key}: {value}, upstream {asked}: {why}")

    def accounts(self) -> Iterator[Account]:
        """What became of every flag, in the order of the command."""
        place = {id(flag): number for number, flag in enumerate(self.launch.flags)}
        found: list[tuple[int, Account]] = []
        for flag, line in self.repeated:
            found.append(
                (place[id(flag)], self._account(flag, "no effect", f"given again on line {line}; the last one counts"))
            )
        for flag in self.foreign:
            near = closest(flag.name.lstrip("-"), self.table)
            detail = f"no flag of {title(self.family)}" + (f"; --{near} is near" if near else "")
            found.append((place[id(flag)], self._account(flag, "unknown", detail)))
        for name, flag in self.given.items():
            verdicts = self._settled.get(name, [])
            if self.problems and not verdicts:
                verdicts = [("unknown", "not settled: the command has problems")]
            if verdicts:
                worst = max(verdicts, key=lambda item: _ORDER.index(item[0]))[0]
                details = list(dict.fromkeys(detail for _, detail in verdicts))
                found.append((place[id(flag)], self._account(flag, worst, "; ".join(details))))
        yield from (account for _, account in sorted(found, key=lambda item: item[0]))
        for link in self.launch.chain:
            yield from (self._account(flag, *self._of_launcher(flag.name.lstrip("-"))) for flag in link.flags)
        for word in self.launch.words:
            yield Account(self.number, self.launch.command.line, word, "unknown", "a word that belongs to no flag")

    def _of_launcher(self, name: str) -> tuple[Verdict, str]:
        key = _LAUNCHER.get(name.replace("-", "_"))
        return self.launched.get(name) or (("taken", key) if key else ("no effect", "chosen by the launcher"))

    def _account(self, flag: Flag, verdict: Verdict, detail: str) -> Account:
        return Account(self.number, flag.line, marks.shown(flag.text), verdict, detail)


_ORDER: list[Verdict] = ["no effect", "taken", "differs", "unsupported", "unknown"]
_RANKS = ("nproc_per_node", "num_gpus", "include", "num_processes", "ntasks_per_node")
_NODES = ("nnodes", "num_nodes", "num_machines", "nodes", "N")
_LAUNCHER = {
    **dict.fromkeys(_RANKS, "hardware.ranks_per_node"),
    **dict.fromkeys(_NODES, "hardware.nodes"),
    "hostfile": "hardware.hostfile",
    "H": "hardware.hostfile",
    "i": "hardware.ranks_per_node",
    "max_restarts": "hardware.max_restarts",
}


def known(family: str) -> dict[str, dict[str, Any]]:
    """Every flag of a family."""
    tables = table("flags")
    merged: dict[str, dict[str, Any]] = {}
    for name in tables["families"][family]["tables"]:
        merged.update(tables[name])
    return merged


def title(family: str) -> str:
    """A family's name."""
    name: str = table("flags")["families"][family]["title"]
    return name


def spelled(flag: str, flags: dict[str, dict[str, Any]], shortened: bool = True) -> str | None:
    """The flag that argparse takes this for: itself, or, of `shortened` names, the only one that begins so."""
    name = flag.lstrip("-")
    if not flag.startswith("--"):
        return None
    if name in flags:
        return name
    longer = [option for option in flags if option.startswith(name)]
    return longer[0] if shortened and len(longer) == 1 else None
