"""The last checkpoint of a training, converted, is the stage's own weights to the bit; an earlier one is whole, too."""

import hashlib
import json
import os
import pickle

import pytest
import torch

from tests.integration.jobs import make_job, run
from vlmrun.back import Conversion, convert, know_checkpoints
from vlmrun.errors import CheckpointError
from vlmrun.formats.base import How
from vlmrun.formats.convert import compare
from vlmrun.formats.load import describe, load

pytestmark = pytest.mark.ranks

LORA = {
    "tune": {"llm": "lora", "tower": "freeze", "connector": "full"},
    "lora": {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear", "bias": "none", "modules_to_save": []},
}


@pytest.mark.parametrize(
    ("name", "n", "changes"),
    [
        ("plain", 1, {"engine": "plain"}),
        ("zero0", 1, {"zero": 0}),
        ("zero2_bf16", 2, {"zero": 2, "precision": "bf16"}),
        ("zero3", 2, {"zero": 3}),
        ("fsdp", 2, {"engine": "fsdp", "zero": 3}),
        ("lora", 1, {"zero": 2, **LORA}),
    ],
)
def test_checkpoints_become_whole_models(tmp_path, name, n, changes):
    job = run(tmp_path, name, n, max_steps=4, save_steps=2, **changes)
    (job.path / "job.json").write_text(job.to_json())
    summary = convert(job.path / "checkpoints/step-4", tmp_path / "last", "native", Conversion(), came_as="training")
    assert summary["from"] == "training"
    assert compare(job.path / "weights", tmp_path / "last", How()) == []
    described = [json.loads((place / "model.json").read_text()) for place in (job.path / "weights", tmp_path / "last")]
    assert described[0] == described[1]
    convert(job.path / "checkpoints/step-2", tmp_path / "early", "native", Conversion(), came_as="training")
    assert compare(job.path / "weights", tmp_path / "early", How()), "training went on"
    loaded = load(tmp_path / "early", dtype=torch.float32, attention="sdpa", merge_adapter=name == "lora")
    assert loaded.template == describe(tmp_path / "early")["template"]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    job = run(tmp_path, "plain", max_steps=2, save_steps=2, engine="plain")
    (job.path / "job.json").write_text(job.to_json())
    path = job.path / "checkpoints/step-2/state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the checkpoint is damaged: state\.pt"):
        convert(job.path / "checkpoints/step-2", tmp_path / "no", "native", Conversion(), came_as="training")


class Program:
    """What a hostile pickle asks for: a call."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("hostile", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
@pytest.mark.parametrize("way", ["merge", "chat", "convert"])
def test_a_folder_that_calls_itself_a_training_checkpoint_runs_no_code(tmp_path, hostile, way):
    job = make_job(tmp_path, "plain")
    (job.path / "job.json").write_text(job.to_json())
    folder = tmp_path / "plain" / "checkpoints" / "step-9"
    (folder / "deepspeed").mkdir(parents=True)
    data = pickle.dumps(Program(tmp_path / "RAN"), 2)
    (folder / "deepspeed" / hostile).write_bytes(data)
    file = {"n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps({"step": 9, "files": {f"deepspeed/{hostile}": file}}))
    (folder / "vlmrun.json").write_text('{"format": "training"}')
    how = {"dtype": torch.float32, "attention": "sdpa"}
    ways = {
        "merge": lambda came_as: load(folder, **how, merge_adapter=True, came_as=came_as),
        "chat": lambda came_as: load(folder, **how, came_as=came_as),
        "convert": lambda came_as: convert(folder, tmp_path / "out", "llava", Conversion(), came_as=came_as),
    }
    know_checkpoints()
    with pytest.raises(CheckpointError, match="--from training"):
        ways[way](None)
    before = torch.load
    with pytest.raises(CheckpointError, match=r"which is code|cannot be read as tensors"):
        ways[way]("training")
    assert torch.load is before, "other threads load as they did"
    assert not (tmp_path / "RAN").exists()
