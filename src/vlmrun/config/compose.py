"""Hydra composes `conf/`, the user's own conf folders and the command line into one plain dict.

Hydra stops at the first wrong override; here each one is taken out, reported with the nearest name, and composition
tried again, so that all of them are reported together with what the schema finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from vlmrun.config import overrides as words
from vlmrun.config.catalog import conf_dir as conf_dir
from vlmrun.config.catalog import search_path as search_path
from vlmrun.config.hydra_call import compose as hydra_compose
from vlmrun.errors import Problem, closest, suggest

# What Hydra raises when it refuses an override: ValueError for `group=null`, the others where it did not expect one.
_REFUSALS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    AssertionError,
    TypeError,
    AttributeError,
    LookupError,
)
_MOST_LISTED = 8


@dataclass
class Composed:
    """A composed run, not yet typed. `tree` is usable only as far as `problems` allow; `notes` is what to say aloud."""

    tree: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)


def compose(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Composed:
    """Composes as far as possible and collects what stood in the way."""
    try:
        return _composed(overrides, config_dirs)
    except YAMLError as error:  # of a file, of which nothing can be read
        return Composed({}, [_malformed(error)])
    except OSError as error:
        what = f"a configuration file cannot be read: {error.strerror}"
        return Composed({}, [Problem(what, str(error.filename or ""), "nothing is wrong with the overrides")])


def _composed(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Composed:
    unread = {text: problem for text in overrides if (problem := words.problem(text)) is not None}
    problems = list(unread.values())
    remaining = [word for text in overrides if text not in unread for word in _in_place(text)]
    searched = [f"file://{folder}" for folder in search_path(config_dirs)]
    extra = [f"hydra.searchpath=[{','.join(searched)}]"] if searched else []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        while True:
            try:
                config = hydra_compose("config", overrides=[*extra, *remaining], return_hydra_config=True)
                break
            except _REFUSALS as error:
                index, cause = _first_failing(extra, remaining, error)
                if cause is None:  # conf/ itself does not compose
                    return Composed({}, [*problems, Problem(_first_line(error), "composition")])
                problem, instead = _explain(cause, remaining[index], extra, remaining[:index])
                problems.append(problem)
                remaining[index : index + 1] = [instead] if instead else []
        notes = list(_hardware_as_chosen(config, extra, remaining))
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        tree = _plain(config, problems)
    assert isinstance(choices, dict)
    chosen = {str(key): value for key, value in choices.items() if not str(key).startswith("hydra")}
    return Composed(tree, _once(problems), notes, chosen)


def _in_place(text: str) -> list[str]:
    """`tracking={...}` takes the place of a recipe's list, which Hydra would refuse to merge with it."""
    return ["tracking=null", text] if text.startswith("tracking={") else [text]


def _hardware_as_chosen(config: DictConfig, extra: list[str], overrides: list[str]) -> Iterator[str]:
    """Takes back what a recipe sets of the hardware where the command line chooses the hardware; says what, in words.

    Hydra merges a recipe's own values over every group. A recipe's precision and ranks are those of the machine that it
    was published for; only the attention kernel stays, since models are known that have no other.
    """
    given = [words.parse(text) for text in overrides]
    chosen = [override.value() for override in given if override.key_or_group == "hardware"]
    if not chosen or not isinstance(chosen[-1], str):
        return
    alone = hydra_compose("config", overrides=[*extra, f"hardware={chosen[-1]}"]).hardware
    explicit = {(override.key_or_group or "").removeprefix("hardware.").split(".")[0] for override in given}
    for key, value in alone.items():
        ours = config.hardware.get(key)
        if str(key) in explicit or ours == value:
            continue
        if key == "attention":
            yield f"hardware.attention stays {ours}, as the recipe says; hardware={chosen[-1]} has {value}"
            continue
        config.hardware[key] = value
        yield f"hardware.{key} is {value}, as hardware={chosen[-1]} says; the recipe has {ours}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _malformed(error: YAMLError) -> Problem:
    """A configuration file that is no YAML, or has a key twice."""
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    what = error.problem if isinstance(error, MarkedYAMLError) and error.problem else _first_line(error)
    return Problem(f"malformed YAML: {what}", f"{mark.name}:{mark.line + 1}" if mark else "", "fix the file there")


def _first_failing(extra: list[str], overrides: list[str], error: Exception) -> tuple[int, Exception | None]:
    """An override that cannot be composed with those before it, which can, and Hydra's error about it.

    Found by halves, from `error` of all overrides: a composition takes a fifth of a second.
    """
    composes, fails = -1, len(overrides)  # how many of them, from the left
    while fails - composes > 1:
        middle = (composes + fails) // 2
        try:
            hydra_compose("config", overrides=[*extra, *overrides[:middle]])
            composes = middle
        except _REFUSALS as refusal:
            fails, error = middle, refusal
    return fails - 1, error if fails else None


def _explain(error: Exception, culprit: str, extra: list[str], before: list[str]) -> tuple[Problem, str | None]:
    """What is wrong with an override, and the override to continue with, so that the rest of the run is checked too."""
    override = words.parse(culprit)
    key = override.key_or_group or ""
    where = words.place(culprit)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file or "").rpartition("/")
        options = [option for option in error.options if not option.startswith("_")]
        near = closest(name, options)
        instead = culprit.replace(name, near) if near else None
        return Problem(f"{group} has no option {name!r}", where, suggest(name, options)), instead
    if override.is_delete():
        return Problem(f"{key!r} cannot be taken out: {_first_line(error)}", where, f"leave out {culprit}"), None
    if "No match in the defaults list" in str(error) or (key in ("recipe", "pipeline") and not culprit.startswith("+")):
        added = f"+{culprit.lstrip('+')}"
        return Problem(f"{key!r} is not chosen yet", where, f"add it with a plus: {added}"), added
    if options := _options(key):
        fix = suggest(str(override.value()), options)
        return Problem(f"{key} is chosen by the name of an option", where, f"{key}=NAME; {fix}"), None
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(key, culprit, extra, before), None
    return Problem(_first_line(error), where, "check key and value with --cfg job"), None


def _options(group: str) -> list[str]:
    """The shipped options of a group; empty when it is no group."""
    folder = conf_dir() / group
    is_group = group and ".." not in Path(group).parts and folder.is_dir()
    return [file.stem for file in folder.glob("[!_]*.yaml")] if is_group else []


def _unknown_key(key: str, culprit: str, extra: list[str], others: list[str]) -> Problem:
    """Walks the composed tree down to where the key leaves it."""
    try:
        tree = hydra_compose("config", overrides=[*extra, *others])
    except _REFUSALS:
        return Problem(f"unknown key {key!r}", words.place(culprit), "check its spelling with --cfg job")
    node: Any = tree
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            above = ".".join(parts[:depth])
            what = f"{above!r} is null" if node is None else f"{above!r} has no keys of its own"
            fix = _written_out(above, parts[depth:], culprit) if node is None else "give it a plain value"
            return Problem(what, words.place(culprit), fix)
        if part not in node:
            place = ".".join(parts[:depth]) or "the run"
            return Problem(
                f"unknown key {part!r}", f"{place} (command line: {culprit})", _likely(parts, depth, tree, node)
            )
        node = node._get_node(part) if OmegaConf.is_missing(node, part) else node[part]
    return Problem(f"cannot set {key!r}", words.place(culprit), "check the kind of value with --cfg job")


def _written_out(above: str, keys: list[str], culprit: str) -> str:
    """What sets keys below one that is null: `'above={key: value}'`."""
    value = culprit.partition("=")[2]
    for key in reversed(keys):
        value = f"{{{key}: {value}}}"
    return f"'{above}={value}'"


def _likely(parts: list[str], depth: int, tree: DictConfig, node: DictConfig) -> str:
    """What an unknown key may stand for: the end of longer ones, or a misspelled name among those of its place."""
    names = [str(name) for name in node]
    longer = [key for key in _keys(OmegaConf.to_container(tree)) if f".{key}".endswith(f".{'.'.join(parts)}")]
    if longer:
        more = f" and {len(longer) - _MOST_LISTED} more" if len(longer) > _MOST_LISTED else ""
        return f"give the key in full: {', '.join(longer[:_MOST_LISTED])}{more}"
    if not names:
        return f"there are none yet: +{'.'.join(parts)}=... adds it"
    near = closest(parts[depth], names)
    tip = f"did you mean {'.'.join([*parts[:depth], near])!r}? " if near else ""
    return f"{tip}keys: {', '.join(names)}"


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a plain tree."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield f"{prefix}{name}"
        yield from _keys(value, f"{prefix}{name}.")


def _once(problems: list[Problem]) -> list[Problem]:
    """One problem for each thing that is wrong: of values that refer to each other, that of the shortest key."""
    shortest = sorted(problems, key=lambda problem: len(problem.where))
    kept = {(problem.what, problem.fix): problem for problem in reversed(shortest)}
    return [problem for problem in problems if problem in kept.values()]


def _plain(config: DictConfig, problems: list[Problem]) -> dict[str, Any]:
    """Resolves interpolations; what is still `???` or cannot be resolved becomes a problem."""
    tree = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    while True:
        try:
            plain = OmegaConf.to_container(tree, resolve=True)
            break
        except OmegaConfBaseException as error:
            key = str(error.full_key or "")
            problems.append(Problem(_first_line(error), key or "interpolation", "give the value it refers to"))
            if not key or OmegaConf.is_missing(tree, key):
                return {}
            OmegaConf.update(tree, key, "???")  # so that the rest can be resolved and checked
    for missing in sorted(OmegaConf.missing_keys(tree)):
        if not any(problem.where == missing for problem in problems):
            problems.append(Problem(f"{missing} has no value yet", missing, f"give it one: {missing}=..."))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
