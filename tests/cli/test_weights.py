"""merge, average and search through the real command, on the models of the tiny run."""

import json
import os
import shutil

import pytest
import torch

from tests.conftest import TINY
from vlmrun import artifact
from vlmrun.cli import weights as weight_verbs
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.formats.base import How
from vlmrun.formats.convert import convert
from vlmrun.formats.load import describe
from vlmrun.report import lineage
from vlmrun.weights.reader import Reader


def _weights(folder):
    files = sorted((folder / "weights").rglob("*.safetensors"))
    return {file.relative_to(folder).as_posix(): artifact.digest(file) for file in files}


@pytest.fixture
def inside(tiny_run, monkeypatch, tmp_path):
    """The verbs in this process: a start of Python less for each."""
    monkeypatch.chdir(tmp_path)

    def call(verb, *words):
        return getattr(weight_verbs, verb)([*words, "--output", str(tiny_run.output)])

    return call


def test_the_commands_make_what_the_stages_make(inside, vlmrun, tiny_run, tmp_path):
    done = vlmrun(
        "average", "merge", "merge2", "--weights", "0.5", "0.5", "--out", "mean", VLMRUN_OUTPUT=str(tiny_run.output)
    )
    assert done.returncode == 0, done.stderr
    assert "averaging: 70 of 70 tensors" in done.stderr
    assert done.stdout == ""
    stage, mean = tiny_run.stage("average"), tmp_path / "mean"
    assert _weights(mean) == _weights(stage)
    made = artifact.read(mean)
    artifact.verify(mean, made, thorough=True)
    assert [parent.name for parent in made.parents] == ["merge", "merge2"]
    (first, _) = lineage.trace(mean).parents
    assert first.parents[0].parents[0].name == "instruct", "lineage goes back beyond the parents"
    assert describe(mean) == describe(stage)
    for name in ("llm/tokenizer.json", "llm/generation_config.json", "tower/preprocessor_config.json"):
        assert (mean / "weights" / name).read_bytes() == (stage / "weights" / name).read_bytes()
    with pytest.raises(ConfigError, match=r"holds artifact\.json"):
        inside("average", "merge", "merge2", "--weights", "0.5", "0.5", "--out", "mean")
    assert inside("merge", "lora", "--out", "merged") == 0
    assert _weights(tmp_path / "merged") == _weights(tiny_run.stage("merge"))


def test_options_reach_the_method(inside, tmp_path):
    code = inside(
        "average", "merge", "merge2", "--weights", "1", "1", "--method", "ties", "--set", "density=0.5", "scale=0.5",
        "--base-model", "instruct", "--dtype", "bf16", "--rule", "^tower=0,1", "--out", "ties",
    )  # fmt: skip
    assert code == 0
    made = artifact.read(tmp_path / "ties")
    assert made.summary["method"] == "ties"
    assert [parent.name for parent in made.parents] == ["merge", "merge2", "instruct"]
    reader = Reader(tmp_path / "ties/weights/llm")
    assert {str(reader.dtype(name)) for name in reader.names()} == {"torch.bfloat16"}


def test_check_proves_without_writing(inside, tiny_run, tmp_path, capsys):
    assert inside("average", "merge", "merge2", "--weights", "0.5", "0.5", "--check") == 0
    assert capsys.readouterr().out.startswith("ok: 2 models with the same 70 tensors (llm 29, tower 37, connector 4)")
    assert inside("merge", "lora", "--check") == 0
    assert "change 21 of the LLM's 29 tensors, and all of theirs fit" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"sum to 1\.1"):
        inside("average", "merge", "lora", "--weights", "0.5", "0.6", "--check")
    with pytest.raises(CheckpointError, match="has an adapter of its own"):
        inside("average", "merge", "lora", "--weights", "0.5", "0.5", "--check")
    harmed = shutil.copytree(tiny_run.stage("merge2"), tmp_path / "harmed")
    file = harmed / "weights/tower/model.safetensors"
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match="content changed"):
        inside("average", "merge", str(harmed), "--weights", "0.5", "0.5", "--check")
    assert [path.name for path in tmp_path.iterdir()] == ["harmed"]


def test_what_cannot_be_read_is_said(inside):
    for words, wanted in (
        (["--method", "tiess", "--out", "x"], "did you mean 'ties'"),
        (["--set", "sum=two", "--out", "x"], "'two'"),
        (["--rule", "tower", "--out", "x"], "cannot read the rule 'tower'"),
        ([], "--out is missing"),
        (["--last", "2", "--out", "x"], "--last takes one training"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            inside("average", "merge", "merge2", "--weights", "0.5", "0.5", *words)
    with pytest.raises(CheckpointError, match="did you mean 'merge'"):
        inside("average", "mergee", "merge2", "--weights", "0.5", "0.5", "--out", "x")
    with pytest.raises(CheckpointError, match="2 checkpoints are there, 7 are asked for"):
        inside("average", "instruct", "--last", "7", "--ema", "0.5", "--out", "x")


def test_the_last_checkpoints_of_one_training_fade(inside, tiny_run, tmp_path):
    """A finished stage's own checkpoints, as training wrote them; the newest holds what the stage made."""
    stage = tiny_run.stage("instruct")
    older, _ = sorted((stage / "checkpoints").glob("step-*"))
    assert inside("average", "instruct", "--last", "2", "--ema", "0.75", "--out", "made") == 0
    convert(older, tmp_path / "older", "native", How(), came_as="training")
    for part, name in (("llm", "model.layers.0.mlp.up_proj.weight"), ("connector", "layers.0.weight")):
        folders = (tmp_path / "older", stage / "weights", tmp_path / "made/weights")
        old, new, made = (Reader(folder / part).get(name) for folder in folders)
        assert not torch.equal(old, new)
        assert torch.allclose(made, 0.75 * old + 0.25 * new, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["artifact.json", "lock", "weights"]


def test_models_in_other_formats_are_averaged(inside, tiny_run, tmp_path):
    native = [tiny_run.stage(name) for name in ("merge", "merge2")]
    for folder, name in zip(native, ("one", "two"), strict=True):
        convert(folder, tmp_path / name, "hf_llava", How(), prove=False)
    assert inside("average", "one", "two", "--weights", "0.5", "0.5", "--out", "foreign") == 0
    assert inside("average", "merge", "merge2", "--weights", "0.5", "0.5", "--out", "ours") == 0
    readers = [Reader(tmp_path / name / "weights/llm") for name in ("foreign", "ours")]
    assert all(torch.equal(*(reader.get(name) for reader in readers)) for name in readers[1].names())


SEARCH = [
    "name=searched", "model=micro", "data=[shapes_test]", "stage=[search]",
    *(word for word in TINY if "shapes_test" in word),
    "stage.search.data=[shapes_test]", "stage.search.max_samples=6", "stage.search.max_new_tokens=4",
    "stage.search.divisions=2",
]  # fmt: skip


def test_a_search_scores_every_point_goes_on_and_keeps_the_best(tiny_run, vlmrun, tmp_path):
    models = [str(tiny_run.stage(name)) for name in ("merge", "instruct")]
    words = [*SEARCH, f"stage.search.models=[{','.join(models)}]"]
    first = vlmrun(*words)
    assert first.returncode == 0, first.stderr
    (stage,) = (tmp_path / "outputs/stages").glob("search-*")
    points = [json.loads(line) for line in (stage / "points.jsonl").read_text().splitlines()]
    assert [point["weights"] for point in points] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    made = artifact.read(stage)
    best = max(points, key=lambda point: point["score"])
    assert made.summary["best"] == "/".join(f"{weight:g}" for weight in best["weights"])
    assert made.summary["accuracy"] == best["accuracy"]
    assert sorted(path.name for path in stage.iterdir()) == [
        "artifact.json", "best.json", "job.json", "lock", "logs", "points.jsonl", "weights",
    ], "no model of another point is left"  # fmt: skip
    report = (tmp_path / "outputs/runs/searched/report.html").read_text()
    assert "weight of the second model" in report
    # As if it had been killed while it scored the second point: a torn line, half a model.
    weights = _weights(stage)
    (stage / "artifact.json").unlink()
    row = json.dumps(points[0] | {"score": 2.0, "accuracy": 0.75})
    (stage / "points.jsonl").write_text(f"{row}\n" + json.dumps(points[1])[:30])
    (stage / "trial/weights").mkdir(parents=True)
    second = vlmrun(*words)
    assert second.returncode == 0, second.stderr
    assert "1 of 3 points were scored before" in second.stderr
    again = [json.loads(line) for line in (stage / "points.jsonl").read_text().splitlines()]
    assert again[0]["score"] == 2.0, "what was scored is not asked again"
    assert again[1:] == points[1:]
    assert artifact.read(stage).summary["best"] == "1/0"
    if best["point"] == 0:
        assert _weights(stage) == weights
    assert not (stage / "trial").exists()
