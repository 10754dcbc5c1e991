"""A connector from outside the package: one file, one YAML; checks of lengths, a plan, some steps of training."""

import json

from tests.conftest import TINY

CODE = '''
from dataclasses import dataclass

import torch
from torch import nn

from vlmrun.arch.connectors import Arithmetic
from vlmrun.model.connectors.base import Connector


@dataclass(frozen=True)
class HalvedArithmetic(Arithmetic):
    scale: float = 1.0

    def tokens(self, n_patches: int) -> int:
        return n_patches // 2


class Halved(Connector):
    """Two neighbors become one."""

    ARITHMETIC = HalvedArithmetic

    def __init__(self, vision_dim: int, llm_dim: int, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.scale = scale
        self.linear = nn.Linear(2 * vision_dim, llm_dim)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        features = torch.cat(layers, dim=-1)
        return self.linear(features.unflatten(1, (-1, 2)).flatten(2)) * self.scale
'''


def test_one_file_and_one_yaml(vlmrun, tmp_path):
    (tmp_path / "my_parts").mkdir()
    (tmp_path / "my_parts" / "halved.py").write_text(CODE)
    (tmp_path / "my_conf" / "model" / "connector").mkdir(parents=True)
    option = tmp_path / "my_conf" / "model" / "connector" / "halved.yaml"
    option.write_text("_target_: my_parts.halved.Halved\nscale: 0.5\nweights: null\n")
    command = ["--config-dir", "my_conf", *TINY, "model/connector=halved", "only=[pretrain]"]
    refused = vlmrun(*command, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert "VLMRUN_ALLOW" in refused.stderr
    how = {"PYTHONPATH": str(tmp_path), "VLMRUN_ALLOW": "my_parts"}
    # The micro tower gives 16 patches of width 96.
    long = vlmrun("check", *command, "model.max_length=8", **how)
    assert long.returncode == 2
    assert "an image takes 8 tokens, a sample may have 8" in long.stderr
    planned = vlmrun("plan", *command, "--json", **how)
    assert planned.returncode == 0, planned.stderr
    (stage,) = json.loads(planned.stdout)["stages"]
    assert stage["parameters"]["connector"]["total"] % (2 * 96 + 1) == 0
    assert stage["work"]["image_tokens"] == 8 * stage["work"]["samples"]
    done = vlmrun(*command, **how)
    assert done.returncode == 0, done.stderr
    weights = next(tmp_path.glob("outputs/stages/pretrain-*/weights"))
    saved = json.loads((weights / "model.json").read_text())["model"]["connector"]
    assert saved == {"_target_": "my_parts.halved.Halved", "scale": 0.5}
    start = f"model.connector.weights={weights / 'connector'}"
    again = vlmrun(*command, start, "stage.pretrain.seed=5", **how)
    assert again.returncode == 0, again.stderr
    wrong = vlmrun(*command, start, "model.tower.layers=[-1,-2]", **how)
    assert wrong.returncode != 0
    assert "linear.weight is" in wrong.stderr
