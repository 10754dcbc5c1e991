"""Hydra composes `conf/`, the user's own conf folders and the command line into one plain dict.

Hydra stops at the first wrong override; here each one is taken out, reported with the nearest name, and composition
tried again, so that all of them are reported together with what the schema finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmrun import build
from vlmrun.errors import Problem, closest, suggest

# What Hydra raises when it refuses an override; ValueError for `group=null` and the like.
_REFUSALS = (HydraException, OmegaConfBaseException, ValueError)


@dataclass
class Composed:
    """A composed run, not yet typed. `tree` is usable only as far as `problems` allow."""

    tree: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)


def conf_dir() -> Path:
    """The shipped `conf/`: inside the installed package, or at the root of a checkout."""
    packaged = Path(__file__).resolve().parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "conf"


def search_path(extra: Sequence[Path] = ()) -> list[Path]:
    """Folders that add options to the groups: those of `--config-dir`, then `conf/` of installed plugins."""
    plugins = []
    for package in build.plugins():
        spec = find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(location) / "conf"
            plugins += [folder] if folder.is_dir() else []
    return [*(path.resolve() for path in extra), *plugins]


def parse(override: str) -> Override:
    """One command-line override, parsed by Hydra's grammar."""
    return OverridesParser.create().parse_override(override)


def compose(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Composed:
    """Composes as far as possible and collects what stood in the way."""
    problems = list(_syntax_problems(overrides))
    remaining = [text for text in overrides if not any(problem.where == _where(text) for problem in problems)]
    searched = [f"file://{folder}" for folder in search_path(config_dirs)]
    extra = [f"hydra.searchpath=[{','.join(searched)}]"] if searched else []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        while True:
            try:
                config = hydra_compose("config", overrides=[*extra, *remaining], return_hydra_config=True)
                break
            except _REFUSALS as error:
                index, cause = _first_failing(extra, remaining)
                if cause is None:  # conf/ itself does not compose
                    return Composed({}, [*problems, Problem(_first_line(error), "composition")])
                problem, instead = _explain(cause, remaining[index], extra, remaining[:index])
                problems.append(problem)
                remaining[index : index + 1] = [instead] if instead else []
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        tree = _plain(config, problems)
    assert isinstance(choices, dict)
    return Composed(
        tree, problems, {str(key): value for key, value in choices.items() if not str(key).startswith("hydra")}
    )


def _where(override: str) -> str:
    return f"{override} (command line)"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _syntax_problems(overrides: Sequence[str]) -> Iterator[Problem]:
    for text in overrides:
        try:
            parse(text)
        except HydraException as error:
            yield Problem(
                f"cannot read the override {text!r}: {_first_line(error)}",
                _where(text),
                "write key=value; quote a value with spaces, brackets or commas: 'key=[a,b]'",
            )


def _first_failing(extra: list[str], overrides: list[str]) -> tuple[int, Exception | None]:
    """The first override that cannot be composed with those before it, and Hydra's error about it."""
    for index in range(-1, len(overrides)):
        try:
            hydra_compose("config", overrides=[*extra, *overrides[: index + 1]])
        except _REFUSALS as error:
            return index, error if index >= 0 else None
    raise AssertionError("composition failed with all overrides, so it fails with a prefix of them")


def _explain(error: Exception, culprit: str, extra: list[str], before: list[str]) -> tuple[Problem, str | None]:
    """What is wrong with an override, and the override to go on with, so that the rest of the run is checked too."""
    override = parse(culprit)
    key = override.key_or_group or ""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file or "").rpartition("/")
        options = [option for option in error.options if not option.startswith("_")]
        near = closest(name, options)
        instead = culprit.replace(name, near) if near else None
        return Problem(f"{group} has no option {name!r}", _where(culprit), suggest(name, options)), instead
    if "No match in the defaults list" in str(error) or (key in ("recipe", "pipeline") and not culprit.startswith("+")):
        added = f"+{culprit.lstrip('+')}"
        return Problem(f"{key!r} is not chosen yet", _where(culprit), f"add it with a plus: {added}"), added
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(key, culprit, extra, before), None
    return Problem(_first_line(error), _where(culprit), ""), None


def _unknown_key(key: str, culprit: str, extra: list[str], others: list[str]) -> Problem:
    """Walks the composed tree down to where the key leaves it."""
    try:
        node: Any = hydra_compose("config", overrides=[*extra, *others])
    except _REFUSALS:
        return Problem(f"unknown key {key!r}", _where(culprit), "check its spelling with --cfg job")
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            return Problem(
                f"{'.'.join(parts[:depth])!r} has no keys of its own", _where(culprit), "give it a plain value"
            )
        if part not in node:
            place = ".".join(parts[:depth]) or "the run"
            names = [str(name) for name in node]
            near = closest(part, names)
            tip = f"did you mean {'.'.join([*parts[:depth], near])!r}? " if near else ""
            return Problem(
                f"unknown key {part!r}", f"{place} (command line: {culprit})", f"{tip}keys: {', '.join(names)}"
            )
        node = node._get_node(part) if OmegaConf.is_missing(node, part) else node[part]
    return Problem(f"cannot set {key!r}", _where(culprit), "check the kind of value with --cfg job")


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
