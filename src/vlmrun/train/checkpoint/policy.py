"""When checkpoints of a run are written, named, kept and looked at again; `save` knows how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmrun import heartbeat, logs
from vlmrun.errors import CheckpointError
from vlmrun.train.checkpoint import commit as save

log = logs.get(__name__)


class Saver:
    """The checkpoints of one run. Every method is a collective, except where it says otherwise.

    Args:
        write: a collective that fills a folder with the state of the engine.
        n_trainable: parameters that are trained, to tell whether the disk has room.
        background: sync and hash what is written while training continues, and name it a step or so later.
    """

    def __init__(
        self,
        folder: Path,
        write: Callable[[Path], None],
        facts: dict[str, Any],
        *,
        n_trainable: int,
        limit: int,
        background: bool,
    ) -> None:
        self.folder, self.facts = folder, facts
        self.best: int | None = None  # step of the model that is kept whatever comes later
        self._write, self._n_trainable = write, n_trainable
        self._limit, self._background = limit, background
        self._pending: save.Draft | None = None

    def save(self, step: int) -> None:
        """Writes the checkpoint of a step; in the background it may have its name only after `finish`."""
        self.finish()
        heartbeat.beat("save")
        save.check_space(self.folder, step, self._n_trainable)
        self._pending = save.draft(self.folder, step, self._write, background=self._background)
        if not self._background:
            self.finish()

    @property
    def waits(self) -> bool:
        """Whether something written has no name yet; the same on all ranks."""
        return self._pending is not None

    @property
    def works(self) -> bool:
        """Whether this rank still syncs and hashes; no collective."""
        return self._pending is not None and not self._pending.mine.done()

    def finish(self) -> None:
        """Gives what was written its name, waiting for it if need be, and removes what is not kept."""
        if self._pending is not None:
            heartbeat.beat("save")
            written, self._pending = self._pending, None
            save.seal(written, self.facts)
            save.prune(self.folder, self._limit, self.best)

    def prove(self, step: int, load: Callable[[Path], None], state: Callable[[], object]) -> None:
        """Reads the last checkpoint back from the disk and loads it: what is in memory must not change by a bit.

        A damaged one is written once more.

        Args:
            state: fingerprints of what is trained.

        Raises:
            CheckpointError: when the second one is damaged too, or does not give the same state.
        """
        self.finish()
        heartbeat.beat("save")
        before = state()
        found = save.newest_good(self.folder)
        if found is None or found.step != step:
            save.commit(self.folder, step, self._write, self.facts)
            save.prune(self.folder, self._limit, self.best)
            found = save.newest_good(self.folder)
        if found is None or found.step != step:
            raise CheckpointError(
                f"the checkpoint of step {step} cannot be read back as it was written, twice",
                str(self.folder),
                "the disk, its controller or its memory is faulty: use another output folder",
            )
        load(found.path)
        if state() != before:
            raise CheckpointError(
                f"the checkpoint of step {step} gives other weights than it was written from",
                str(found.path),
                "this is a bug: please report it with the job.json",
            )
