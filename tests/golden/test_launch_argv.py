"""What each launcher is started with, kept as data: every launcher, one node and each of two.

To write it anew after a meant change: `python -m tests.golden.test_launch_argv`, and read the difference.
"""

import base64
import json
import sys
from pathlib import Path

import pytest
import yaml

from vlmrun import graph
from vlmrun.cluster.node import ALONE, Node
from vlmrun.config.compose import compose
from vlmrun.config.job import StageJob
from vlmrun.config.validate import validate
from vlmrun.run import argv, pipeline

FILE = Path(__file__).parent / "argv.yaml"
GIVEN = {"HOME": "/home/me", "RANK": "1", "MASTER_ADDR": "of another", "MASTER_PORT": "1", "NODE_RANK": "1"}
LAUNCHERS = {"inline": 1, "torchrun": 4, "deepspeed": 4, "srun": 4}


def job(launcher: str, nodes: int) -> StageJob:
    composed = compose(
        ["+recipe=smoke", "output=/shared/outputs", "hardware=rtx_consumer", f"hardware.launcher={launcher}",
         f"hardware.nodes={nodes}", f"hardware.ranks_per_node={LAUNCHERS[launcher]}"]
    )  # fmt: skip
    config, problems = validate(composed.tree, composed.problems)
    assert config is not None, problems
    planned, _ = graph.plan(config)
    item = next(item for item in planned if item.name == "instruct")
    run = pipeline.Run(config, planned, {item.name: "0123456789" for item in planned}, Path("/shared/outputs/runs/x"))
    return pipeline.job_of(run, item)


def described(launcher: str, n_nodes: int, rank: int) -> dict[str, object]:
    node = ALONE if n_nodes == 1 else Node(rank, "gpu1", 29500, n_nodes)
    made = job(launcher, n_nodes)
    command = argv.command(made, 41234, "4,5,6,7", 2, node)
    found: dict[str, object] = {"argv": ["python" if word == sys.executable else word for word in command]}
    if "--world_info" in command:
        found["world"] = json.loads(base64.urlsafe_b64decode(command[command.index("--world_info") + 1]))
    found["environment"] = argv.environment(made, GIVEN, 41234, node)
    return found


CASES = [(launcher, 1, 0) for launcher in LAUNCHERS] + [
    (launcher, 2, rank)
    for launcher in ("torchrun", "deepspeed", "srun")
    for rank in range(1 if launcher == "srun" else 2)
]


def name_of(launcher: str, n_nodes: int, rank: int) -> str:
    return f"{launcher}, one node" if n_nodes == 1 else f"{launcher}, node {rank} of {n_nodes}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of(*case))
def test_argv_and_environment_are_those_on_record(case):
    assert described(*case) == yaml.safe_load(FILE.read_text())[name_of(*case)]


def test_every_case_is_on_record():
    assert list(yaml.safe_load(FILE.read_text())) == [name_of(*case) for case in CASES]


if __name__ == "__main__":
    whole = {name_of(*case): described(*case) for case in CASES}
    FILE.write_text(yaml.safe_dump(whole, sort_keys=False, width=110, default_flow_style=None))
