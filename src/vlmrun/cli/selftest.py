"""`vlmrun selftest`: does every engine and kernel that this machine has compute what it should?"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from vlmrun import artifact
from vlmrun.cli.options import new_parser
from vlmrun.errors import ConfigError, LaunchError, suggest
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid
from vlmrun.selftest import probe, running
from vlmrun.selftest.checks import CHECKS, Check
from vlmrun.selftest.probe import Machine
from vlmrun.selftest.running import Outcome

_EXAMPLES = """\
vlmrun selftest                    what runs on this machine, GPU or not
vlmrun selftest --gpu              the same; without a GPU it exits with 5
vlmrun selftest --only '*flash*'   some of the checks
vlmrun selftest --list             what there is, and what this machine lacks
"""


def main(arguments: list[str]) -> int:
    """Runs the checks; 0 when none failed."""
    about = (
        "Short training runs of the micro model on this machine, each compared with plain PyTorch on its CPU. What is "
        "missing is skipped by name, and never counted as passed. Offline, minutes."
    )
    parser = new_parser("selftest", about, _EXAMPLES)
    parser.add_argument("--gpu", action="store_true", help="a GPU must be here")
    parser.add_argument("--only", metavar="PATTERN", action="append", help="checks whose names fit, such as 'ZeRO*'")
    parser.add_argument("--list", action="store_true", help="list the checks, and run none")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write machine and outcomes there as well")
    options = parser.parse_args(arguments)
    checks = _chosen(options)
    machine = probe.look()
    if options.gpu and not machine.n_gpus:
        raise LaunchError(machine.trouble, "this machine", "vlmrun selftest tries what needs no GPU")
    sys.stdout.write(_described(machine) + "\n")
    if options.list:
        lines = [[check.name, running.missing(check, machine) or "runs here"] for check in checks]
        tables.write(Grid("", [Column("check"), Column("here")], lines), sys.stdout)
        return 0
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="vlmrun-selftest-") as scratch:
        for outcome in running.run(machine, Path(scratch), checks):
            outcomes.append(outcome)
            sys.stdout.write(_line(outcome) + "\n")
            sys.stdout.flush()
    counts = {state: sum(one.state == state for one in outcomes) for state in ("passed", "failed", "skipped")}
    sys.stdout.write(", ".join(f"{n} {state}" for state, n in counts.items()) + "\n")
    if options.json is not None:
        found = {"machine": asdict(machine), "checks": [asdict(one) for one in outcomes]}
        artifact.write_json(options.json, json.loads(json.dumps(found)))
    return 1 if counts["failed"] else 0


def _chosen(options: argparse.Namespace) -> list[Check]:
    if not options.only:
        return list(CHECKS)
    chosen = [check for check in CHECKS if any(fnmatchcase(check.name, pattern) for pattern in options.only)]
    if not chosen:
        names = [check.name for check in CHECKS]
        raise ConfigError(f"no check fits {' '.join(options.only)!r}", "--only", suggest(options.only[0], names))
    return chosen


def _described(machine: Machine) -> str:
    if not machine.n_gpus:
        return f"torch {machine.torch}, no GPU ({machine.trouble})"
    size = tables.bytes_text(machine.memory)
    capability = ".".join(map(str, machine.capability))
    gpus = f"{machine.n_gpus} x {machine.gpu}, {size}, compute capability {capability}"
    return f"torch {machine.torch}, CUDA {machine.cuda}, {gpus} (as hardware.gpu={machine.table_name})"


def _line(outcome: Outcome) -> str:
    off = "" if outcome.off is None else f"off by {outcome.off:.1e}, allowed {outcome.check.tolerance:g}"
    why = outcome.why or off
    seconds = "" if outcome.state == "skipped" else f"{outcome.seconds:.1f} s"
    return f"{outcome.state:<8}{outcome.check.name:<38}{seconds:>8}  {why}".rstrip()
