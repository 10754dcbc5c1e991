"""Sweeps through Hydra's own plugins, in the real command."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")


# Whole micro batches are what is swept; they do not change a stage's key.
FIXED = [text for text in TINY if "pretrain.micro_batch" not in text]


def swept(folder: Path):
    (file,) = (folder / "outputs" / "sweeps").glob("*/sweep.json")
    return json.loads(file.read_text()), file.parent


@pytest.mark.slow
def test_points_of_joblib_share_what_they_share_and_one_that_fails_stops_no_other(vlmrun, tmp_path):
    done = vlmrun(
        "-m", *FIXED, "only=[pretrain]", "stage.pretrain.micro_batch=4,2,3",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=3",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    jobs, folder = swept(tmp_path)
    assert [job["overrides"] for job in jobs] == [[f"stage.pretrain.micro_batch={n}"] for n in (4, 2, 3)]
    assert "is no multiple of micro_batch 3 x" in jobs[2]["error"]["problems"][0]["what"]
    assert [job["error"] for job in jobs[:2]] == [None, None]
    assert jobs[0]["stages"] == jobs[1]["stages"]
    # Two processes wanted the same two stages at once: each was made by one of them, and waited for by the other.
    assert len(list((tmp_path / "outputs" / "stages").iterdir())) == 2
    points = [json.loads((folder / str(n) / "point.json").read_text()) for n in range(2)]
    assert sorted(item["reused"] for point in points for item in point["outcomes"]) == [False, False, True, True]
    assert "sweep of 3 trials, 1 failed" in done.stdout
    assert (folder / "0" / "report.html").is_file()


@pytest.mark.slow
def test_optuna_is_told_the_objective_and_goes_on_after_a_failure(vlmrun, tmp_path, tiny_run):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "stages").symlink_to(tiny_run.output / "stages")  # everything is there already
    done = vlmrun(
        "-m", *FIXED, "only=[pretrain]", "objective=pretrain.loss", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2",
        "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "stage.pretrain.micro_batch=choice(3,4)",
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
    jobs, folder = swept(tmp_path)
    assert [job["overrides"] for job in jobs] == [[f"stage.pretrain.micro_batch={n}"] for n in (4, 3)]
    found = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert found["best_params"] == {"stage.pretrain.micro_batch": 4}
    assert found["best_value"] == jobs[0]["stages"]["pretrain"]["loss"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["hydra/launcher=joblib"], "hydra/launcher is about sweeps"),
        (["-m", "hydra/launcher=joblb"], "Available options in 'hydra/launcher': basic joblib"),
        (["-m", "hydra.sweep.dir=here", "hydra/launcher=joblib"], "hydra.sweep.dir is not free"),
        (["-m", "stage.lora.optim.lr=interval(1e-4,1e-3)"], "an interval has no points of its own"),
    ],
)
def test_what_hydra_cannot_be_asked_is_refused(vlmrun, overrides, told):
    done = vlmrun("+recipe=smoke", *overrides)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
