"""A merge method from outside the package: one file, one YAML."""

import torch

from vlmrun.checks import rules
from vlmrun.config.compose import compose
from vlmrun.config.validate import validate
from vlmrun.merging.average import average
from vlmrun.weights.reader import Reader

CODE = '''
from typing import Literal

from vlmrun.config.schema import MethodNode


class Blend(MethodNode):
    """The first model, moved towards the second."""

    weighted = False
    n_models = 2

    name: Literal["my_methods.blend"]
    share: float


def combine(source, weights, method):
    for block in source:
        first, second = (model.float() for model in block.models)
        yield first.lerp(second, method.share)
'''
CHOSEN = ["+recipe=smoke", "stage/method@stage.average.method=blend", "stage.average.weights=null"]


def composed(*overrides, folder):
    result = compose([*CHOSEN, *overrides], [folder])
    run, problems = validate(result.tree, result.problems)
    return run, [*result.problems, *problems]


def test_one_file_and_one_yaml(tmp_path, monkeypatch, make):
    (tmp_path / "my_methods").mkdir()
    (tmp_path / "my_methods" / "blend.py").write_text(CODE)
    options = tmp_path / "my_conf" / "stage" / "method"
    options.mkdir(parents=True)
    (options / "blend.yaml").write_text("name: my_methods.blend\nshare: 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    conf = tmp_path / "my_conf"

    _, (problem,) = composed(folder=conf)
    assert problem.where == "stage.average.method"
    assert "VLMRUN_ALLOW" in problem.fix
    monkeypatch.setenv("VLMRUN_ALLOW", "my_methods")
    _, (problem,) = composed("+stage.average.method.shar=1", folder=conf)
    assert (problem.what, problem.where) == ("unknown key 'shar'", "stage.average.method")
    _, (problem,) = composed("stage.average.method.share=x", folder=conf)
    assert problem.where == "stage.average.method.share"

    run, problems = composed("stage.average.weights=[1,1]", folder=conf)
    assert problems == []
    assert [problem.what for problem in rules.check(run, here=False)] == ["my_methods.blend finds its own weights"]
    run, _ = composed("stage.average.models=[merge,merge2,instruct]", folder=conf)
    assert [problem.what for problem in rules.check(run, here=False)] == [
        "my_methods.blend takes 2 models, but there are 3"
    ]

    run, _ = composed(folder=conf)
    assert rules.check(run, here=False) == []
    stage = type(run.stage["average"]).model_validate_json(run.stage["average"].model_dump_json())
    assert stage.method.share == 0.25, "a job has all of its values"
    first, second = make("first", 1, "connector"), make("second", 2, "connector")
    average(stage, [first, second], tmp_path / "mean" / "weights")
    made, a, b = (Reader(folder / "weights" / "connector") for folder in (tmp_path / "mean", first, second))
    for name in made.names():
        wanted = a.get(name).float().lerp(b.get(name).float(), 0.25).to(made.dtype(name))
        assert torch.equal(made.get(name), wanted)
        assert not torch.equal(a.get(name), b.get(name))
