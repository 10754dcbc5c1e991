import pytest

from vlmrun.config.job import StageJob
from vlmrun.config.schema import PrepareStage
from vlmrun.errors import ConfigError, DataError
from vlmrun.stages import prepare


def job(folder, target, **arguments):
    stage = PrepareStage.model_validate({"kind": "prepare", "source": {"_target_": target, **arguments}})
    return StageJob.model_construct(name="shapes", folder=str(folder), stage=stage)


def test_shapes_are_made(tmp_path):
    shapes = job(tmp_path, "vlmrun.data.shapes.prepare", n_train=4, n_test=2, seed=0)
    result = prepare.execute(shapes)
    assert result.roots == ("data",)
    made = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert result.summary == {"n_files": len(made)}
    assert "data/captions.json" in made


def test_leftovers_of_an_interrupted_attempt_are_cleared(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "half.json").write_text("[")
    prepare.execute(job(tmp_path, "vlmrun.data.shapes.prepare", n_train=4, n_test=2, seed=0))
    assert not (tmp_path / "data" / "half.json").exists()


def test_wrong_arguments_and_sources_that_write_nothing(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="n_trian"):
        prepare.execute(job(tmp_path, "vlmrun.data.shapes.prepare", n_trian=4, n_test=2, seed=0))
    (tmp_path / "idle_source.py").write_text("def make(folder):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VLMRUN_ALLOW", "idle_source")
    with pytest.raises(DataError, match="wrote no file"):
        prepare.execute(job(tmp_path / "out", "idle_source.make"))
