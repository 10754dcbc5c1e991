"""Services that are reached through accelerate's trackers: mlflow, aim, comet, clearml, swanlab, trackio.

None of them continues a run by an id of ours, so that a resumed training begins another run, which is complete in
itself: everything before its checkpoint is written again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import tracking

from vlmrun.config.schema import Service
from vlmrun.train.log import Row, Tracker, numbers
from vlmrun.train.scores import Score


@dataclass(frozen=True)
class Named:
    """How a training is called in a service.

    Attributes:
        run: its name there.
        folder: for what the service keeps on this machine, shared by all runs of an output root.
    """

    run: str
    project: str
    group: str
    folder: Path
    service: Service

    @property
    def online(self) -> bool:
        """Whether the network may be used."""
        return self.service.mode == "online"


class _Log(logging.LoggerAdapter[logging.Logger]):
    """In place of accelerate's logger, which asks for its own process group."""

    def warning_once(self, message: str, *args: Any) -> None:
        self.debug(message, *args)


class Accelerated(Tracker):
    """A run of a service.

    Args:
        config: the composed run.
        before: rows and evaluations up to the checkpoint that the training resumes from.
    """

    def __init__(self, name: str, named: Named, config: Mapping[str, Any], before: Sequence[Row | Score]) -> None:
        tracking.logger = _Log(logging.getLogger("vlmrun.tracking"), {})
        named.folder.mkdir(parents=True, exist_ok=True)
        self._inner = SERVICES[name](named)
        self._inner.main_process_only = False  # only rank 0 comes here
        self._inner.start()
        self._inner.store_init_configuration(flat(config) | {"group": named.group})
        for one in before:
            self.track(one) if isinstance(one, Row) else self.evaluated(one)

    def track(self, row: Row) -> None:
        """Logs at the row's step."""
        self._inner.log({f"train/{name}": value for name, value in numbers(row).items()}, step=row.step)

    def evaluated(self, score: Score) -> None:
        """Logs at the step."""
        self._inner.log({f"eval/{name}": value for name, value in score.numbers.items()}, step=score.step)

    def close(self) -> None:
        """Ends the run; online, waits for the upload."""
        self._inner.finish()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted keys, as `vlmrun --cfg job` has them; lists and nothing as text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str | int | float) else str(value)
    return found


def _mlflow(named: Named) -> Any:
    import mlflow

    if not named.online:
        mlflow.set_tracking_uri(f"sqlite:///{named.folder / 'mlflow.db'}")
    tags = {"group": named.group, **dict.fromkeys(named.service.tags, "")}
    place = None if named.online else str(named.folder / "artifacts")
    return tracking.MLflowTracker(named.project, logging_dir=place, run_name=named.run, tags=tags)


def _aim(named: Named) -> Any:
    made = tracking.AimTracker(named.run, logging_dir=str(named.folder), experiment=named.project)
    start = made.start

    def tagged() -> None:
        start()
        for tag in named.service.tags:
            made.tracker.add_tag(tag)

    made.start = tagged
    return made


def _comet(named: Named) -> Any:
    import comet_ml

    os.environ.setdefault("COMET_OFFLINE_DIRECTORY", str(named.folder))
    about = comet_ml.ExperimentConfig(name=named.run, tags=[named.group, *named.service.tags])
    return tracking.CometMLTracker(
        named.project, workspace=named.service.entity, online=named.online, experiment_config=about
    )


def _clearml(named: Named) -> Any:
    from clearml import Task

    if not named.online:
        os.environ.setdefault("CLEARML_CACHE_DIR", str(named.folder))
        Task.set_offline(offline_mode=True)
    return tracking.ClearMLTracker(
        named.run,
        project_name=f"{named.project}/{named.group}",
        task_name=named.run,
        tags=list(named.service.tags),
        auto_connect_frameworks=False,
        auto_connect_arg_parser=False,
    )


def _swanlab(named: Named) -> Any:
    return tracking.SwanLabTracker(
        named.project,
        experiment_name=named.run,
        workspace=named.service.entity,
        group=named.group,
        tags=list(named.service.tags),
        logdir=str(named.folder),
        mode="cloud" if named.online else "offline",
    )


def _trackio(named: Named) -> Any:
    os.environ.setdefault("TRACKIO_DIR", str(named.folder))
    return tracking.TrackioTracker(named.project, name=named.run, group=named.group)


# Name -> what makes accelerate's tracker; docs/guides/trackers.md has the same table in words.
SERVICES: dict[str, Callable[[Named], Any]] = {
    "mlflow": _mlflow,
    "aim": _aim,
    "comet": _comet,
    "clearml": _clearml,
    "swanlab": _swanlab,
    "trackio": _trackio,
}
