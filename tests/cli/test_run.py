"""A whole small run through the real command: what is printed, kept, reused, compared and asked."""

import json
import time

import pytest

from tests.conftest import TINY
from vlmrun import artifact

STAGES = [
    "shapes", "pretrain", "instruct", "lora", "merge", "lora2", "merge2", "average",
    "eval_pretrain", "eval_instruct", "eval_merge", "eval_merge2", "eval_average",
]  # fmt: skip


def test_every_stage_ends_as_a_verified_artifact(tiny_run):
    for name in STAGES:
        folder = tiny_run.stage(name)
        found = artifact.read(folder)
        assert found is not None, name
        artifact.verify(folder, found, thorough=True)
        assert found.name == name


def test_progress_the_table_the_report_and_next_commands_are_shown(tiny_run):
    assert "[1/13] shapes: prepare data" in tiny_run.stderr
    for name in STAGES:
        assert name in tiny_run.stdout
    assert "trainable" in tiny_run.stderr
    assert (tiny_run.output / "runs" / "smoke" / "report.html").is_file()
    assert "next:" in tiny_run.stdout
    assert "vlmrun chat average" in tiny_run.stdout
    assert "Warning" not in tiny_run.stderr
    assert "Traceback" not in tiny_run.stderr


def test_lineage_goes_back_to_the_data(tiny_run):
    average = artifact.read(tiny_run.stage("average"))
    assert [parent.name for parent in average.parents] == ["merge", "merge2"]
    merge = artifact.read(tiny_run.stage("merge"))
    assert [parent.name for parent in merge.parents] == ["lora"]


def test_training_ran_in_a_deepspeed_engine(tiny_run):
    for name in ("pretrain", "instruct", "lora", "lora2"):
        assert artifact.read(tiny_run.stage(name)).summary["engine"].startswith("ZeRO-")


def test_metrics_have_a_row_per_step(tiny_run):
    rows = [json.loads(line) for line in (tiny_run.stage("instruct") / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["loss"] > 0 and row["supervised_tokens"] > 0 for row in rows)


def test_a_second_run_reuses_everything_and_is_quick(tiny_run, vlmrun):
    before = {path: path.stat().st_mtime_ns for path in (tiny_run.output / "stages").rglob("*") if path.is_file()}
    started = time.monotonic()
    done = vlmrun(*TINY, cwd=tiny_run.folder)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": reused, ") == len(STAGES)
    after = {path: path.stat().st_mtime_ns for path in (tiny_run.output / "stages").rglob("*") if path.is_file()}
    assert before == after
    assert seconds < 20, "two seconds on an idle machine (benchmarks/startup); this bound only catches a retraining"


def test_ls_lists_all_and_shows_lineage(tiny_run, vlmrun):
    listed = json.loads(vlmrun("ls", "--json", cwd=tiny_run.folder).stdout)
    assert {item["name"] for item in listed} >= set(STAGES)
    shown = vlmrun("ls", "average", cwd=tiny_run.folder).stdout
    assert shown.index("merge") < shown.index("pretrain")
    assert vlmrun("ls", "--verify", cwd=tiny_run.folder).returncode == 0


def test_chat_answers_once_on_stdout(tiny_run, vlmrun):
    picture = next((tiny_run.stage("shapes") / "data" / "images" / "test").glob("*.png"))
    question = ["--image", str(picture), "--prompt", "What colour is the shape?"]
    done = vlmrun("chat", "average", *question, cwd=tiny_run.folder)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) <= 2
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("reference", ["shapes", "eval_merge"])
def test_chat_with_what_is_no_model_is_refused(tiny_run, vlmrun, reference):
    done = vlmrun("chat", reference, "--prompt", "hi", cwd=tiny_run.folder)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_a_saved_stage_is_self_contained(tiny_run, vlmrun, tmp_path):
    """Moved to another folder, without the run that made it, the model still loads and answers the same."""
    import shutil

    picture = next((tiny_run.stage("shapes") / "data" / "images" / "test").glob("*.png"))
    shutil.copytree(tiny_run.stage("lora"), tmp_path / "moved", symlinks=True)
    question = ["--image", str(picture), "--prompt", "What shape is it?"]
    here = vlmrun("chat", "lora", *question, cwd=tiny_run.folder)
    there = vlmrun("chat", str(tmp_path / "moved"), *question, cwd=tmp_path)
    assert there.returncode == 0, there.stderr
    assert here.stdout == there.stdout


def test_a_sweep_trains_what_is_shared_once(vlmrun, tmp_path):
    quick = ["only=[pretrain]", "stage.pretrain.max_steps=2", "stage.pretrain.engine=plain"]
    swept = ["stage.lora.optim.lr=1e-3,3e-3", "model/connector=linear,mlp2x_gelu"]
    done = vlmrun("-m", *TINY, *quick, *swept)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs" / "stages").glob("pretrain-*"))) == 2
    assert len(list((tmp_path / "outputs" / "sweeps").glob("*/[0-3]/config.yaml"))) == 4
    assert done.stderr.count("model/connector=linear") >= 2, "the comparison names what differs"


def test_a_failing_point_does_not_stop_a_sweep_and_the_exit_code_tells(vlmrun, tmp_path):
    quick = ["only=[pretrain]", "stage.pretrain.max_steps=2", "stage.pretrain.engine=plain"]
    done = vlmrun(*TINY, *quick, "stage.pretrain.micro_batch=3,4", "-m")
    assert done.returncode == 2
    assert "is no multiple of micro_batch 3 x" in done.stderr
    (record,) = (tmp_path / "outputs" / "sweeps").glob("*/sweep.json")
    assert [job["error"] is None for job in json.loads(record.read_text())] == [False, True]


def test_going_on_from_a_folder_needs_the_parts_it_holds(tiny_run, vlmrun):
    start = f"stage.instruct.init_from={tiny_run.stage('pretrain')}"
    same = vlmrun("check", *TINY, start, "model.max_length=100")
    assert same.returncode == 0, same.stderr
    texts = {"model.tower.layers=[-2]": "layers: [-1] there, [-2] here", "model/llm=pico": "hidden_size"}
    for changed, text in texts.items():
        done = vlmrun("check", *TINY, start, changed)
        assert done.returncode == 2, done.stderr
        assert text in done.stderr


def test_going_on_from_a_folder_saves_this_runs_length(tiny_run, vlmrun, tmp_path):
    quick = ["only=[instruct]", "stage.instruct.max_steps=2", "stage.instruct.engine=plain", "model.max_length=100"]
    done = vlmrun(*TINY, *quick, f"stage.instruct.init_from={tiny_run.stage('pretrain')}")
    assert done.returncode == 0, done.stderr
    (saved,) = (tmp_path / "outputs" / "stages").glob("instruct-*/weights/model.json")
    assert json.loads(saved.read_text())["model"]["max_length"] == 100


@pytest.mark.parametrize("content", ["[]", "{", '{"model": 1}', '{"model": {"llm": 1, "tower": 2, "connector": 3}}'])
def test_a_damaged_model_to_go_on_from_is_a_sentence(vlmrun, tiny_run, tmp_path, content):
    import shutil

    shutil.copytree(tiny_run.stage("pretrain"), tmp_path / "held", symlinks=True)
    (tmp_path / "held" / "weights" / "model.json").write_text(content)
    done = vlmrun("check", *TINY, f"stage.instruct.init_from={tmp_path}/held")
    assert done.returncode == 2, done.stderr
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
