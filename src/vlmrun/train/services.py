"""Tracking services: tensorboard's event files and wandb's runs. What a kill took from them is written again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vlmrun.config.job import StageJob
from vlmrun.config.schema import Service
from vlmrun.train.log import Row, Tracker, numbers
from vlmrun.train.scores import Score

PROJECT = "vlmrun"  # of all runs, where none is named: within one they can be compared
# Behind the name of a wandb file: `wandb sync --sync-all` passes over it.
_SYNCED = ".synced"


class TensorBoard(Tracker):
    """Event files in `logs/tensorboard`, or in a folder of the stage's name below `$TENSORBOARD_DIR`."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def track(self, row: Row) -> None:
        """One scalar per number."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(f"train/{name}", value, row.step)

    def evaluated(self, score: Score) -> None:
        """One scalar per number."""
        for name, value in score.numbers.items():
            self._writer.add_scalar(f"eval/{name}", value, score.step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB(Tracker):
    """A wandb run in `logs/wandb`. Offline unless `mode: online` was asked for.

    One training run is one wandb run, whose id is the stage's key. Online, a resumed training run continues it. wandb
    cannot continue an offline run, so a resumed one writes everything before its checkpoint again, into a file that
    is complete by itself, and the earlier ones are marked as synced: they hold nothing else.

    `WANDB_PROJECT` and `WANDB_NAME` are used where they are set, and wandb itself reads `WANDB_ENTITY` and the others.

    Args:
        before: rows and evaluations up to the checkpoint that the run resumes from.
    """

    def __init__(self, job: StageJob, folder: Path, before: list[Row | Score], service: Service) -> None:
        import wandb

        online = service.mode == "online"

        folder.mkdir(parents=True, exist_ok=True)
        earlier = [] if online else list(_unsynced(folder))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or service.project or PROJECT,
            entity=service.entity,  # null: $WANDB_ENTITY, or the account's own
            name=os.environ.get("WANDB_NAME") or f"{job.run}/{job.name}",
            group=os.environ.get("WANDB_RUN_GROUP") or service.group or job.run,
            tags=service.tags or None,
            id=f"{job.name}-{job.key}"[:64],
            resume="allow" if online else None,
            dir=str(folder),
            mode="online" if online else "offline",
            config=(job.composed or {"stage": {job.name: job.stage.model_dump()}}) | {"key": job.key},
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )
        known = self._run.step if online else 0  # the service takes no step twice
        for one in before:
            if one.step >= known:
                self.track(one) if isinstance(one, Row) else self.evaluated(one)
        for file in earlier:
            file.with_name(file.name + _SYNCED).touch()

    def track(self, row: Row) -> None:
        """Logs at the row's step."""
        self._run.log({f"train/{name}": value for name, value in numbers(row).items()}, step=row.step)

    def evaluated(self, score: Score) -> None:
        """Logs at the step."""
        self._run.log({f"eval/{name}": value for name, value in score.numbers.items()}, step=score.step)

    def close(self) -> None:
        """Ends the run; online, waits for the upload."""
        self._run.finish()


def _unsynced(folder: Path) -> Iterator[Path]:
    """Files of offline runs that are to be uploaded."""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        if not file.with_name(file.name + _SYNCED).exists():
            yield file
