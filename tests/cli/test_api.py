"""vlmrun.api: the notebook runs from its first cell to its last, and the functions say what the commands say."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import ROOT, TINY
from vlmrun import api, artifact
from vlmrun.errors import CheckpointError, ConfigError, DataError
from vlmrun.run import numbers

NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"


def test_compose_gives_the_run_that_cfg_job_prints(vlmrun):
    import yaml

    config = api.compose("+recipe=smoke", "stage.lora.optim.lr=0.5")
    assert config.stage["lora"].optim.lr == 0.5
    printed = yaml.safe_load(vlmrun("+recipe=smoke", "stage.lora.optim.lr=0.5", "--cfg", "job").stdout)
    assert config.model_dump(by_alias=True) == printed


def test_check_returns_problems_and_compose_raises_them():
    assert api.check("+recipe=smoke") == []
    wrong = api.check("+recipe=smoke", "stage.lora.optim.lrr=1", "stage.lora.micro_batch=5")
    assert len(wrong) == 2
    assert "unknown key 'lrr'" in {problem.what for problem in wrong}
    with pytest.raises(ConfigError, match="lrr"):
        api.compose("+recipe=smoke", "stage.lora.optim.lrr=1")


def test_a_config_dir_of_ones_own(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /recipe/smoke\n  - _self_\nname: from_my_folder\n"
    )
    assert api.compose("+recipe=mine", config_dir=tmp_path).name == "from_my_folder"


def test_runs_artifacts_and_metrics_are_those_of_the_disk(tiny_run):
    (run,) = api.runs(tiny_run.output)
    assert (run.name, run.report) == ("smoke", tiny_run.output / "runs" / "smoke" / "report.html")
    assert run.values["stage"]["lora"]["max_steps"] == 4
    assert run.stages["lora"].folder.resolve() == tiny_run.stage("lora")
    made = {stage.name: stage for stage in api.artifacts(tiny_run.output)}
    assert set(made) == set(run.stages)
    assert made["lora"].kind == "train"
    rows = api.metrics("lora", tiny_run.output)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows == api.metrics(made["lora"])
    with pytest.raises(DataError, match="no metrics"):
        api.metrics(made["average"])
    with pytest.raises(CheckpointError, match="no artifact 'lorra'"):
        api.metrics("lorra", tiny_run.output)
    assert api.runs(tiny_run.folder / "nowhere") == []


def made(folder, name, key="0" * 8):
    """A finished stage without files, as `artifact.json` says it."""
    about = artifact.Artifact(
        name=name, kind="train", key=key, run="x", created=artifact.now(), parents=[], summary={}, environment={},
        files={},
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / artifact.NAME).write_text(about.model_dump_json())


def test_each_run_is_listed_once_and_what_is_damaged_is_left_out(tmp_path):
    for number in range(1, 12):  # links lead to the last one
        folder = numbers.claim(tmp_path / "runs" / "mine", f"name: mine\nseed: {number}\n")
    old = tmp_path / "runs" / "old"  # as earlier versions made it
    old.mkdir()
    (old / "config.yaml").write_text("name: old\n")
    broken = tmp_path / "runs" / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("{")
    for name in ("good", "bad"):
        made(tmp_path / "stages" / name, name)
        (folder / "stages").mkdir(exist_ok=True)
        (folder / "stages" / name).symlink_to(tmp_path / "stages" / name)
    (tmp_path / "stages" / "bad" / artifact.NAME).write_text('{"name": ')
    found = api.runs(tmp_path)
    assert [(run.name, run.folder.name, run.values.get("seed")) for run in found] == [
        *(("mine", str(number), number) for number in range(1, 12)),
        ("old", "old", None),
    ]
    assert list(found[10].stages) == ["good"]


@pytest.mark.slow
def test_a_loaded_model_answers_as_chat_does(vlmrun, tiny_run):
    (image, *_) = sorted(tiny_run.stage("shapes").glob("data/images/test/*.png"))
    model = api.load("average", output=tiny_run.output, max_new_tokens=8)
    answer = model.ask("What is it?", image)
    said = vlmrun(
        "chat",
        "average",
        "--image",
        str(image),
        "--prompt",
        "What is it?",
        "--max-new-tokens",
        "8",
        cwd=tiny_run.folder,
    )
    assert said.stdout == answer + "\n"
    with Image.open(image) as opened:
        assert model.ask("What is it?", opened.convert("RGB")) == answer, "each question for itself"
    assert isinstance(model.ask("And now?", follow_up=True), str)
    with pytest.raises(DataError):
        model.ask("What is it?", tiny_run.folder / "nothing.png")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)
    # The last line of a cell is shown by a notebook: it has to be valid there, and is run as any other here.
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unknown key 'lrr'" in done.stdout
    assert (tmp_path / "outputs" / "runs" / "first_steps" / "report.html").is_file()


def test_importing_the_package_and_its_api_loads_no_torch():
    code = "import sys, vlmrun.api; print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_run_is_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = api.run(*TINY, "only=[pretrain]")
    assert set(run.stages) == {"shapes", "pretrain"}
    assert run.stages["shapes"].folder.is_dir()
    assert [each.name for each in api.runs()] == ["smoke"]
