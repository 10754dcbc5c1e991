"""The files of a checkpoint: their digests, the manifest that lists them, and whether they still match it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.train import dist

MANIFEST = "MANIFEST.json"
STEP_NAME = re.compile(r"step-(\d+)")
TEMPORARY = ".tmp-"
Files = dict[str, dict[str, Any]]  # by path below the folder: n_bytes, sha256


def step_of(name: str) -> int:
    match = STEP_NAME.fullmatch(name)
    assert match, name
    return int(match[1])


def digests(folder: Path, rank: int, world: int, *, sync: bool) -> Files:
    """Size and digest of a rank's share of all files but the manifest.

    Args:
        sync: written just now: forced to the disk, and hashed while the kernel remembers what was meant. Otherwise
            they are read from the disk itself.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    found = {}
    for path in paths[rank::world]:
        with path.open("rb") as handle:
            if sync:
                os.fsync(handle.fileno())
            else:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found[path.relative_to(folder).as_posix()] = {"n_bytes": path.stat().st_size, "sha256": artifact.digest(path)}
    return found


def gathered(mine: Files) -> Files:
    """All ranks' shares together."""
    merged: Files = {}
    for part in dist.gather_objects(mine):
        merged |= part
    return dict(sorted(merged.items()))


def verified(path: Path) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a checkpoint (None: nothing), and its manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        listed, step, _ = manifest["files"], manifest["step"], manifest["facts"]
    except FileNotFoundError:
        return f"no {MANIFEST}", {}
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read", {}
    found = gathered(digests(path, dist.rank(), dist.world(), sync=False))
    wrong = [f"{name}: missing" for name in listed if name not in found]
    wrong += [f"{name}: content changed" for name in listed if name in found and found[name] != listed[name]]
    if step != step_of(path.name):
        wrong.append(f"it is of step {step}")
    return ("; ".join(wrong) or None), manifest


def discard(path: Path) -> None:
    """Removes a folder; renamed first, so that a kill half way leaves nothing that looks whole."""
    if not path.exists():
        return
    doomed = path.with_name(f"{TEMPORARY}gone-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
