"""Rules about services that get the numbers of a training: what each has a place for, and what has to be installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from vlmrun.checks.table import Rule
from vlmrun.config.schema import RunConfig, services
from vlmrun.errors import Problem


@dataclass(frozen=True)
class _Known:
    """A service.

    Attributes:
        package: what it is imported as, and what pip calls it.
        takes: the fields that it has a place for, besides `mode: offline`.
    """

    package: str
    pip: str
    takes: frozenset[str]


_ALL = frozenset({"project", "entity", "group", "tags", "online"})
SERVICES = {
    "tensorboard": _Known("tensorboard", "tensorboard", frozenset()),
    "wandb": _Known("wandb", "wandb", _ALL),
    "mlflow": _Known("mlflow", "mlflow", _ALL - {"entity"}),
    "aim": _Known("aim", "aim", _ALL - {"entity", "online"}),
    "comet": _Known("comet_ml", "comet-ml", _ALL),
    "clearml": _Known("clearml", "clearml", _ALL - {"entity"}),
    "swanlab": _Known("swanlab", "swanlab", _ALL),
    "trackio": _Known("trackio", "trackio", _ALL - {"entity", "tags", "online"}),
}


def _fields(run: RunConfig) -> Iterator[Problem]:
    for name, asked in services(run.tracking).items():
        values = {"project": asked.project, "entity": asked.entity, "group": asked.group, "tags": asked.tags}
        given = {key for key, value in values.items() if value} | ({"online"} if asked.mode == "online" else set())
        for key in sorted(given - SERVICES[name].takes):
            field = "mode" if key == "online" else key
            known = ", ".join(sorted(SERVICES[name].takes - {"online"})) or "no values"
            yield Problem(f"{name} has no {key}", f"tracking.{name}.{field}", f"leave it out; {name} takes {known}")


def _installed(run: RunConfig) -> Iterator[Problem]:
    for name in services(run.tracking):
        known = SERVICES[name]
        if find_spec(known.package) is None:
            what = f"tracking with {name} needs {known.package}, which is not installed"
            yield Problem(what, f"tracking.{name}", f"pip install {known.pip}")


RULES = (
    Rule("tracking", "A service is given only what it has a place for.", ("tracking",), _fields),
    Rule("trackers", "Services that get the numbers are installed.", ("tracking",), _installed, here=True),
)  # fmt: skip
