"""`job.json`: the one door between the front half and the workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from vlmrun.config.schema import Data, HardwareConfig, ModelConfig, Node, Stage, Tracking

JOB_FILE = "job.json"
# Environment variable with a folder in which the ranks of one node meet.
RENDEZVOUS = "VLMRUN_RENDEZVOUS"
FAILURE_FILE = "failure.json"  # a worker's last words: an error for its parent to show


class StageJob(Node):
    """One stage, fully resolved: all that a worker knows.

    `parents` maps every reference the stage makes (`init_from`, `models`) to the artifact folder it resolves to,
    `prepared` lists the artifact folders its data was made in. Paths in `data` are absolute by now.
    """

    name: str
    key: str
    run: str
    folder: str
    stage: Stage
    model: ModelConfig
    data: dict[str, Data]
    parents: dict[str, str]
    prepared: list[str]
    hardware: HardwareConfig
    tracking: Tracking = Field(default_factory=list)
    composed: dict[str, Any] = Field(default_factory=dict)  # the whole run, for the services that get its numbers

    @property
    def path(self) -> Path:
        """The stage folder."""
        return Path(self.folder)

    def to_json(self) -> str:
        """The text of `job.json`."""
        return json.dumps(self.model_dump(by_alias=True), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> StageJob:
        """Reads a `job.json`."""
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return cls.model_validate(raw)
