"""Checkpoints that are there whole or not at all.

A checkpoint is written under a temporary name, every file is synced and hashed, the manifest is written, and only then
the folder gets its name. Whenever a process dies, what is called `step-N` and matches its manifest is good. DeepSpeed
alone would call a checkpoint the latest before other ranks have written theirs, and loads flipped bytes without a word.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact, logs
from vlmrun.errors import CheckpointError
from vlmrun.train import dist
from vlmrun.train.checkpoint.files import (
    MANIFEST,
    STEP_NAME,
    TEMPORARY,
    Files,
    digests,
    discard,
    gathered,
    step_of,
    verified,
)

log = logs.get(__name__)
_DAMAGED = "damaged-"
# AdamW in fp32 beside fp32 weights: two moments, a master copy, the weights.
_BYTES_PER_PARAMETER = 16
_MARGIN_BYTES = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `facts` say what kind of run can continue from it."""

    step: int
    path: Path
    facts: dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is written, and has no name yet. `mine` will describe this rank's share of its files."""

    folder: Path
    step: int
    path: Path
    mine: Future[Files]


def commit(folder: Path, step: int, write: Callable[[Path], None], facts: dict[str, Any]) -> Path:
    """Writes the checkpoint of a step; every rank calls it.

    Args:
        write: a collective that fills the folder it is given.

    Raises:
        CheckpointError: when it cannot be written; what was saved before is untouched.
    """
    return seal(draft(folder, step, write), facts)


def draft(folder: Path, step: int, write: Callable[[Path], None], *, background: bool = False) -> Draft:
    """Writes the files of a checkpoint under a temporary name, and begins to sync and hash them. A collective.

    Args:
        background: sync and hash in a thread: the files are finished, and nothing changes them any more.

    Raises:
        CheckpointError: as `commit`.
    """
    temporary = folder / f"{TEMPORARY}step-{step}"
    if dist.is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    with _reporting(folder, step):
        write(temporary)
        dist.barrier()
    share = functools.partial(digests, temporary, dist.rank(), dist.world(), sync=True)
    return Draft(folder, step, temporary, _future(share, background=background))


def seal(written: Draft, facts: dict[str, Any]) -> Path:
    """Lists what was written and gives it its name. A collective, which waits for the files of all ranks.

    Raises:
        CheckpointError: as `commit`.
    """
    folder, step, final = written.folder, written.step, written.folder / f"step-{written.step}"
    with _reporting(folder, step):
        files = gathered(written.mine.result())
        if dist.is_main():
            manifest = {"step": step, "facts": facts, "files": files}
            artifact.write_json(written.path / MANIFEST, manifest)
            discard(final)
            written.path.rename(final)
            artifact.fsync_folder(folder)
    dist.barrier()
    return final


def check_space(folder: Path, step: int, n_trainable: int) -> None:
    """Refuses, on all ranks together, to begin a checkpoint that the disk cannot hold.

    Raises:
        CheckpointError: with what is needed and what is free.
    """
    needed = n_trainable * _BYTES_PER_PARAMETER + _MARGIN_BYTES * dist.world()
    folder.mkdir(parents=True, exist_ok=True)
    missing = torch.tensor([needed - shutil.disk_usage(folder).free], dtype=torch.float64)
    short = float(dist.all_reduce(dist.on_device(missing), maximum=True))
    if short > 0:
        raise _cannot_save(
            folder, step, f"about {needed / 1e6:.0f} MB are needed, {(needed - short) / 1e6:.0f} MB are free"
        )


def newest_good(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files match its manifest; every rank calls it and gets the same.

    A damaged one is reported, set aside, and the one before is taken.
    """
    names = sorted((p.name for p in folder.glob("step-*") if STEP_NAME.fullmatch(p.name)), key=step_of, reverse=True)
    for name in dist.broadcast_object(names):
        path = folder / name
        problem, manifest = verified(path)
        if problem is None:
            return Checkpoint(manifest["step"], path, manifest["facts"])
        if dist.is_main():
            log.warning("checkpoint %s is damaged (%s): going back to the one before", path, problem)
            discard(folder / f"{_DAMAGED}{name}")
            path.rename(folder / f"{_DAMAGED}{name}")
        dist.barrier()
    if names and dist.is_main():
        log.warning("no checkpoint in %s is whole: training starts from the beginning", folder)
    return None


def open_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of one step; every rank calls it.

    Raises:
        CheckpointError: when it is missing or damaged.
    """
    path = folder / f"step-{step}"
    problem, manifest = verified(path)
    if problem is not None:
        raise CheckpointError(
            f"the checkpoint of step {step}, whose model was the best, is damaged ({problem})",
            str(path),
            f"restore it; or remove {folder} to train again",
        )
    return Checkpoint(manifest["step"], path, manifest["facts"])


def prune(folder: Path, limit: int, best: int | None = None) -> None:
    """Keeps the newest `limit` checkpoints and the one of step `best`, and nothing half-written or damaged."""
    if not dist.is_main() or not folder.is_dir():
        return
    good = sorted((p for p in folder.iterdir() if STEP_NAME.fullmatch(p.name)), key=lambda p: step_of(p.name))
    stale = [p for p in folder.iterdir() if p.name.startswith((TEMPORARY, _DAMAGED))]
    for path in [p for p in good[:-limit] if step_of(p.name) != best] + stale:
        discard(path)


def check_facts(found: Checkpoint, facts: dict[str, Any], *, movable: bool) -> bool:
    """Refuses a checkpoint of another run or layout; returns whether it has to be resharded for our number of ranks.

    Args:
        movable: whether the engine can do that.

    Raises:
        CheckpointError: naming every difference.
    """
    changed = [key for key, value in facts.items() if found.facts.get(key) != value]
    if changed == ["ranks"] and movable:
        return True
    if changed:
        different = "; ".join(f"{key}: {found.facts.get(key)!r} then, {facts[key]!r} now" for key in changed)
        raise CheckpointError(
            f"the checkpoint of step {found.step} does not fit this run ({different})",
            str(found.path),
            "run with the values it was written with, or remove the checkpoints folder to train from the beginning",
        )
    return False


def _future(work: Callable[[], Files], *, background: bool) -> Future[Files]:
    """What `work` will have returned or raised."""
    future: Future[Files] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    if background:
        threading.Thread(target=run, name="checkpoint", daemon=True).start()
    else:
        run()
    return future


@contextlib.contextmanager
def _reporting(folder: Path, step: int) -> Iterator[None]:
    """Turns what the disk says into a sentence.

    torch reports a full disk as a RuntimeError. Ranks then stand in different collectives: only leaving is safe.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if dist.is_main():
            shutil.rmtree(folder / f"{TEMPORARY}step-{step}", ignore_errors=True)
        if dist.lost_a_rank(error):
            raise
        raise _cannot_save(folder, step, str(error).splitlines()[0]) from error


def _cannot_save(folder: Path, step: int, reason: str) -> CheckpointError:
    last = max((step_of(p.name) for p in folder.glob("step-*") if STEP_NAME.fullmatch(p.name)), default=0)
    kept = f"the checkpoint of step {last} is untouched" if last else "none was saved before"
    return CheckpointError(
        f"the checkpoint of step {step} cannot be written: {reason}; {kept}",
        str(folder),
        "free some space (or lower save_total_limit) and give the same command again: it resumes from there",
    )
