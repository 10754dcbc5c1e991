"""Runs the checks one after another, each as a user would start it, and compares their losses with the reference's."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vlmrun.names import METRICS
from vlmrun.selftest.checks import CHECKS, COMMON, REFERENCE, Check
from vlmrun.selftest.probe import Machine

_SECONDS = 900  # of one check: DeepSpeed's Adam is compiled in it
# Two OpenMP threads that wait for each other are many times slower than one.
_QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        off: the largest difference of a step's loss from the reference; None: not compared.
        why: of one that failed or was skipped.
    """

    check: Check
    state: State
    seconds: float = 0.0
    off: float | None = None
    losses: tuple[float, ...] = ()
    why: str = ""


def missing(check: Check, machine: Machine) -> str:
    """What keeps a check from being run here; empty: nothing."""
    packages = [name for name in check.packages if find_spec(name) is None]
    if packages:
        return f"{', '.join(packages)} not installed"
    on_cpu = check.gpus > 1 and not machine.n_gpus
    if check.gpus > machine.n_gpus and not on_cpu:
        return f"needs {'a GPU' if check.gpus == 1 else f'{check.gpus} GPUs'}, {machine.n_gpus} here"
    if check.gpus and machine.capability < check.capability:
        return f"needs compute capability {'.'.join(map(str, check.capability))}"
    return ""


def run(machine: Machine, folder: Path, checks: Sequence[Check] = CHECKS) -> Iterator[Outcome]:
    """Yields the outcome of every check as it is known; the reference is run first, whether or not it is asked for."""
    reference = next(check for check in CHECKS if check.name == REFERENCE)
    truth: tuple[float, ...] = ()
    for check in (reference, *(one for one in checks if one is not reference)):
        reason = missing(check, machine)
        if reason:
            yield Outcome(check, "skipped", why=reason)
            continue
        if check is not reference and not truth:
            yield Outcome(check, "skipped", why="no reference")
            continue
        outcome = _tried(check, machine, folder, truth)
        if check is reference and outcome.state == "passed":
            truth = outcome.losses
        yield outcome


def _tried(check: Check, machine: Machine, folder: Path, truth: tuple[float, ...]) -> Outcome:
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    gpu = f"hardware.gpu={machine.table_name}"
    command = [sys.executable, "-m", "vlmrun", *COMMON, gpu, *check.overrides, f"output={place / 'outputs'}"]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=place, env=os.environ | _QUIET, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(check, "failed", time.monotonic() - began, why=f"not finished after {_SECONDS} s")
    seconds = time.monotonic() - began
    if done.returncode:
        return Outcome(check, "failed", seconds, why=_said(done.stderr))
    found = list(place.rglob(METRICS))
    if len(found) != 1:
        return Outcome(check, "failed", seconds, why=f"{len(found)} files {METRICS}, one was expected")
    losses = _losses(found[0])
    off = max((abs(a - b) for a, b in zip(losses, truth, strict=False)), default=None)
    why = _wrong(check, losses, truth, off)
    compared = off if check.tolerance is not None and truth else None
    return Outcome(check, "failed" if why else "passed", seconds, compared, losses, why)


def _wrong(check: Check, losses: tuple[float, ...], truth: tuple[float, ...], off: float | None) -> str:
    if not losses or not all(map(math.isfinite, losses)):
        return "a loss is not finite, or there is none"
    if check.name == REFERENCE or check.tolerance is None:
        return "" if losses[-1] < losses[0] else f"the loss does not fall: {losses[0]:.3f} to {losses[-1]:.3f}"
    if len(losses) != len(truth) or off is None:
        return f"{len(losses)} steps, the reference has {len(truth)}"
    return "" if off <= check.tolerance else f"losses are off by {off:.2g}, allowed are {check.tolerance:g}"


def _losses(metrics: Path) -> tuple[float, ...]:
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    return tuple(math.nan if row["loss"] is None else float(row["loss"]) for row in rows if not row.get("overflow"))


def _said(text: str) -> str:
    """The first error of a run, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    error = next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "no reason was given")
    return error.removeprefix("error:").strip()[:200]
