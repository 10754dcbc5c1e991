"""What a run is started on: GPUs, and the code of the folder it is started in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from vlmrun import artifact, logs

log = logs.get(__name__)

_SECONDS = 10.0  # for git and nvidia-smi
_MOST_PATCH = 1 << 20  # bytes
_MOST_CHANGED = 200  # files that are named


def gpus() -> list[str]:
    """A line for each GPU, as nvidia-smi lists them; none where it is not there."""
    return (_said("nvidia-smi", "-L") or "").splitlines() if shutil.which("nvidia-smi") else []


def code(here: Path, patch: Path) -> dict[str, Any] | None:
    """Commit of a folder under git, and the files that differ from it; the differences are written to `patch`."""
    commit = _said("git", "-C", str(here), "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = (_said("git", "-C", str(here), "status", "--porcelain", "--untracked-files=normal") or "").splitlines()
    text = _said("git", "-C", str(here), "diff", "--no-ext-diff", "--no-textconv", "HEAD") or ""
    found: dict[str, Any] = {"commit": commit.strip(), "changed": changed[:_MOST_CHANGED], "patch": None}
    if text and len(text.encode()) <= _MOST_PATCH:
        artifact.write_text(patch, text)
        patch.chmod(0o600)  # what is not committed may be secret
        found["patch"] = patch.name
    elif text:
        log.info("changes of more than 1 MB that are not committed are not kept with the run")
    return found


def _said(*command: str) -> str | None:
    """What a program prints; None when it is not there, fails or takes long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
