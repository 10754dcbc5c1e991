"""What goes wrong after hours: numbers that are lost, a picture damaged meanwhile, a folder without rights."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.faults.conftest import arguments
from tests.faults.test_interruptions import result, stage_folder

GO = ["stage.pretrain.epochs=6", "stage.pretrain.save_steps=2"]  # twelve steps over eight records


def test_numbers_that_are_lost_stop_the_run_before_they_are_saved(own_data, pretrain, tmp_path):
    done = pretrain(
        own_data,
        *GO,
        "stage.pretrain.optim.lr=1e6",
        "stage.pretrain.optim.weight_decay=1e6",
        "stage.pretrain.optim.max_grad_norm=0",
    )
    assert done.returncode == 1, done.stderr
    assert "is not finite: training stops before it is saved" in done.stderr
    assert "samples: " in done.stderr
    assert "Traceback" not in done.stderr
    for path in stage_folder(tmp_path).glob("checkpoints/step-*"):
        assert (path / "MANIFEST.json").is_file(), "what was written before is whole"


def test_a_picture_damaged_in_mid_run_is_named_and_the_run_goes_on_once_it_is_mended(own_data, pretrain, tmp_path):
    """The first epochs have read it; the run that goes on ends where an undisturbed one does."""
    assert pretrain(own_data, *GO).returncode == 0
    calm = result(tmp_path)
    (tmp_path / "outputs").rename(tmp_path / "calm")

    picture = tmp_path / "images" / "5.png"
    whole = picture.read_bytes()
    spoiling = tmp_path / "sitecustomize.py"
    spoiling.write_text(f"""
import os, sys
if "vlmrun.worker" in " ".join(sys.orig_argv):
    import vlmrun.train.checkpoint.policy as saver
    save = saver.Saver.save
    def spoil(self, step):
        save(self, step)
        if step == 6:
            open({str(picture)!r}, "wb").write(b"no picture any more")
    saver.Saver.save = spoil
""")
    broken = pretrain(own_data, *GO, PYTHONPATH=str(tmp_path))
    assert broken.returncode == 3, broken.stderr
    assert "5.png" in broken.stderr
    assert "id 'r5'" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert len((stage_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()) >= 6
    spoiling.unlink()
    picture.write_bytes(whole)
    done = pretrain(own_data, *GO)
    assert done.returncode == 0, done.stderr
    assert "goes on from step 6 of 12" in done.stderr, "what was being sealed when it stopped is not lost"
    assert result(tmp_path) == calm


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv to give up root's rights")
def test_a_stage_folder_that_may_not_be_written_is_told(own_data, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(own_data))
    outputs = tmp_path / "outputs"
    outputs.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    command = [sys.executable, "-m", "vlmrun.cli", *arguments(tmp_path)]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    done = subprocess.run([*nobody, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr, done.stderr
    assert str(outputs) in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluation_on_the_way_through_the_real_command(own_data, pretrain, tmp_path):
    asked = [
        {"question_id": str(n), "image": f"{n}.png", "text": "What?", "answer": "a blue picture", "category": "c",
         "split": "seen"}
        for n in range(3)
    ]  # fmt: skip
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(row) + "\n" for row in asked))
    best = [
        "data=[llava,vqa]", f"data.vqa.annotations={held}", f"data.vqa.images={tmp_path}/images",
        "stage.pretrain.keep_best=loss",
    ]  # fmt: skip
    evaluated = "stage.pretrain.eval={steps: 6, data: [vqa], max_samples: 2, generate: 1, max_new_tokens: 3}"
    done = pretrain(own_data, *GO, *best, evaluated)
    assert done.returncode == 0, done.stderr
    assert "step 6: held-out loss" in done.stderr
    assert "held-out" in done.stdout[done.stdout.index("1 stage") :], "in the table"
    rows = [json.loads(line) for line in (stage_folder(tmp_path) / "eval.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [6, 12]
    report = next((tmp_path / "outputs" / "runs").glob("*/report.html")).read_text()
    assert "Answers during training" in report
    without = pretrain(None, *GO, *best)
    assert without.returncode == 2
    assert "keep_best needs evaluations" in without.stderr
