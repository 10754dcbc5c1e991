"""Launch scripts against what bash really started (golden/g10_scripts). No case is named here."""

from __future__ import annotations

import pytest

from tests.parity.golden import CASES, cases, files, need
from vlmrun.importers.launch import take_apart
from vlmrun.importers.shell.marks import causes, shown
from vlmrun.importers.shell.reader import read_script

FOLDER = "g10_scripts"
PROGRAMS = ("deepspeed", "torchrun", "accelerate", "srun", "python")
RECORDED = cases(f"{FOLDER}/cases.json") if files(f"{FOLDER}/cases.json") else []


def _read(case, meant=False):
    path = need(CASES / FOLDER / case["script"])
    return read_script(path, case["args"], {"HOME": "/home/user", **case["env"]}, meant=meant)


def _as_recorded(launch):
    """A launch in the form of the recording."""
    command = launch.command
    return {
        "program": command.argv[0],
        "argv": list(command.argv[1:]),
        "env": command.env,
        "chain": [
            {"launcher": link.name, "flags": [[flag.name, " ".join(flag.values)] for flag in link.flags]}
            for link in launch.chain
        ],
        "entry": launch.entry,
        "flags": [[flag.name, list(flag.values)] for flag in launch.flags],
    }


def test_the_recording_is_there():
    need(CASES / FOLDER / "cases.json")


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_a_script_starts_what_bash_started(case):
    reading = _read(case)
    launches = [take_apart(command) for command in reading.commands if command.argv[0] in PROGRAMS]
    unknown = set(case["unknown_without_running"])
    if unknown:
        assert unknown <= {cause for command in reading.commands for word in command.argv for cause in causes(word)}
    else:
        assert [_as_recorded(launch) for launch in launches] == case["executed"]
    if case["writes"]:
        assert {path: shown(text) for path, text in reading.files.items()} == case["writes"]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_a_broken_continuation_is_named_and_taken_as_meant(case):
    broken = [found for _, found in _read(case).broken]
    lost = [error for error in case["bash_errors"] if "command not found" in error]
    assert bool(broken) == bool(lost)
    assert len(broken) >= len(lost)
    if case["intended_flags"] is not None:
        reading = _read(case, meant=True)
        (launch,) = [take_apart(command) for command in reading.commands]
        assert [flag.name for flag in launch.flags] == list(case["intended_flags"])
        assert {flag.name: " ".join(flag.values) or None for flag in launch.flags} == case["intended_flags"]
        assert not reading.broken
