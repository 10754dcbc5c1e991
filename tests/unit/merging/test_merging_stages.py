"""The merge and average stages: from a job to a finished weights folder."""

import torch

from tests.integration.jobs import HARDWARE
from tests.pico import pico_model_config
from tests.unit.models import averaging, finish, logits, merging
from vlmrun.config.job import StageJob
from vlmrun.formats.load import load
from vlmrun.stages import average, merge


def _job(tmp_path, name, stage, parents):
    return StageJob.model_validate(
        {
            "name": name,
            "key": "0",
            "run": "test",
            "folder": str(tmp_path / name),
            "stage": stage,
            "model": pico_model_config(tmp_path / "pico").model_dump(by_alias=True),
            "data": {},
            "parents": {parent: str(folder) for parent, folder in parents.items()},
            "prepared": [],
            "hardware": HARDWARE,
        }
    )


def test_merge_then_average(tmp_path, make, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    merged = {}
    for seed in (1, 2):
        lora = make(f"lora{seed}", seed, "connector", adapter=True)
        job = _job(tmp_path, f"merge{seed}", merging(init_from="lora").model_dump(), {"lora": lora})
        result = merge.execute(job)
        assert result.roots == ("weights",)
        assert result.summary["merged"] == 14
        merged[f"merge{seed}"] = finish(job.path)
        assert merge.execute(job).summary == result.summary, "again over what an interrupted attempt left"
    stage = averaging(2, [0.5, 0.5], models=list(merged)).model_dump()
    job = _job(tmp_path, "average", stage, merged)
    assert average.execute(job).summary["models"] == 2
    found = load(job.path, dtype=torch.float32, attention="sdpa")
    assert torch.isfinite(logits(found)).all()


def test_other_ranks_do_nothing(tmp_path, make, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    one = make("one", 1, adapter=True)
    job = _job(tmp_path, "merge", merging(init_from="one").model_dump(), {"one": one})
    assert merge.execute(job) is None
    assert not job.path.exists()
