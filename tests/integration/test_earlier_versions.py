"""Artifacts and a checkpoint that an earlier version left are used as this version's own: reused, resumed, merged.

`assets/made_by_78f3366.tar.xz` holds `outputs/stages` of a shrunk smoke run with pico parts, made by that commit:
shapes, pretrain, instruct and lora finished; lora2 stopped after step 3 of 4. `expected.json` has the keys, and the
norm of every tensor that the same commit made of them without the stop.
"""

import json
import tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import run_vlmrun
from vlmrun import artifact

ASSETS = Path(__file__).parent / "assets"
NAMES = ("captions", "instruct", "lora_a", "lora_b", "test")
COMMAND = [
    "+recipe=smoke", "model/llm=pico", "model/tower=pico_clip", "only=[merge,lora2,merge2,average]",
    *(f"data.shapes_{name}.prepare.{key}" for name in NAMES for key in ("n_train=16", "n_test=8")),
    *(f"stage.{name}.{key}" for name in ("pretrain", "instruct", "lora", "lora2")
      for key in ("max_steps=4", "global_batch=4", "micro_batch=4", "save_steps=1", "engine=plain", "zero=0")),
    *(f"stage.eval_{name}.{key}" for name in ("pretrain", "instruct", "merge", "merge2", "average")
      for key in ("max_samples=4", "max_new_tokens=4")),
]  # fmt: skip


def norms(folder: Path) -> dict[str, float]:
    """The norm of every tensor of a stage's weights, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor.double().norm().item()
        for file in sorted(folder.glob("weights/**/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(ASSETS.glob("made_by_*.tar.xz")), ids=lambda file: file.name.split(".")[0])
def test_what_an_earlier_version_made_is_reused_resumed_merged_and_averaged(file, tmp_path):
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / "outputs", filter="data")
    expected = json.loads((tmp_path / "outputs" / "expected.json").read_text())
    unfinished = f"lora2-{expected['lora2']['key']}"
    before = (tmp_path / "outputs" / "stages" / unfinished / "metrics.jsonl").read_text().splitlines()
    done = run_vlmrun(*COMMAND, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stages = tmp_path / "outputs" / "stages"
    assert sorted(path.name for path in stages.iterdir() if path.name.split("-")[0] in expected) == sorted(
        f"{name}-{made['key']}" for name, made in expected.items()
    )
    for name, made in expected.items():
        folder = stages / f"{name}-{made['key']}"
        assert artifact.read(folder) is not None, name
        assert norms(folder) == pytest.approx(made["norms"], rel=1e-4), name  # another CPU rounds otherwise
    after = (stages / unfinished / "metrics.jsonl").read_text().splitlines()
    assert len(after) == 4
    kept = [{name: value for name, value in json.loads(row).items() if name != "lrs"} for row in after]
    assert kept[:3] == [json.loads(row) for row in before]  # with their times: the first steps were not trained again
