"""Targets: only allowed code, of the right kind, with the right arguments; nothing runs before that is known."""

import sys

import pytest

from vlmrun import build
from vlmrun.config.schema import Target
from vlmrun.errors import ConfigError


def target(dotted, **arguments):
    return Target.model_validate({"_target_": dotted, **arguments})


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug" / "__init__.py").write_text("")
    (tmp_path / "plug" / "parts.py").write_text(
        "import os\nfrom logging import os as hidden\n\n\n"
        "class Base:\n    pass\n\n\n"
        "class Part(Base):\n    def __init__(self, size, *, extra, colour='red'):\n        self.size = size\n\n\n"
        "class Child(Part):\n    pass\n\n\n"
        "system = os.system\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VLMRUN_ALLOW", "plug")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "plug"]:
        del sys.modules[name]


@pytest.mark.parametrize("dotted", ["os.system", "subprocess.run", "builtins.eval", "vlmrunner.x", "plug2.parts.Part"])
def test_code_outside_the_allowed_packages_is_refused(plugin, dotted):
    with pytest.raises(ConfigError, match="is not allowed"):
        build.build(target(dotted))


@pytest.mark.parametrize("dotted", ["plug.parts.system", "plug.parts.hidden.system", "vlmrun.build.os.system"])
def test_a_door_through_an_allowed_module_is_shut(plugin, dotted):
    with pytest.raises(ConfigError):
        build.build(target(dotted))


def test_arguments_are_compared_with_the_signature_without_importing(plugin):
    problems = build.check("plug.parts.Part", {"sise": 1}, "model.x", frozenset({"extra"}))
    assert [problem.what for problem in problems] == ["Part takes no argument 'sise'", "Part needs the argument 'size'"]
    assert "did you mean 'size'?" in problems[0].fix
    assert "plug.parts" not in sys.modules


def test_an_inherited_signature_is_found(plugin):
    assert build.check("plug.parts.Child", {"size": 1}, "x", frozenset({"extra"})) == []
    assert build.check("plug.parts.Child", {}, "x", frozenset({"extra"})) != []


def test_a_target_is_built_with_its_arguments_and_ours(plugin):
    assert build.build(target("plug.parts.Part", size=3), extra=1).size == 3


def test_another_kind_is_refused(plugin):
    class Connector:
        pass

    with pytest.raises(ConfigError, match="is not a Connector"):
        build.build(target("plug.parts.Part", size=3), Connector, extra=1)


@pytest.mark.parametrize("arguments", [{"_partial_": True}, {"_args_": [1]}, {"size": {"_target_": "os.system"}}])
def test_hydras_special_keys_and_nested_targets_are_refused(plugin, arguments):
    with pytest.raises(ConfigError, match="is not allowed in a target"):
        build.build(target("plug.parts.Part", **arguments), extra=1)


def test_a_missing_module_or_name_is_a_sentence(plugin):
    with pytest.raises(ConfigError, match=r"no module 'plug\.nothing'"):
        build.build(target("plug.nothing.Part"))
    with pytest.raises(ConfigError, match="did you mean 'Part'"):
        build.build(target("plug.parts.Prat"))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`written("sub/part.py", source)` writes a module below the allowed package `mine`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VLMRUN_ALLOW", "mine")

    def write(name, source):
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        return file

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


TYPES = [
    ("int", 2, "two"),
    ("int", -1, True),
    ("int", 0, 1.5),
    ("float", 1, "1"),
    ("float", 0.5, False),
    ("str", "a", 7),
    ("bool", True, 1),
    ("list[int]", [-1], -1),
    ("list[int]", [], ["a"]),
    ("Sequence[int]", [1, 2], "a"),
    ("Sequence[int]", [1], -1),
    ("list[str]", ["a"], "a"),
    ("dict[str, Any]", {"a": 1}, [1]),
    ("str | None", None, 7),
    ("int | list[int]", [1], "a"),
    ("Optional[int]", None, "a"),
    ("Literal['patch', 'cls_patch']", "patch", "pach"),
    ("'int | None'", None, "a"),
    ("None", None, 0),
]


@pytest.mark.parametrize(("annotation", "good", "bad"), TYPES)
def test_values_are_compared_with_plain_annotations(written, annotation, good, bad):
    written("part.py", f"def make(value: {annotation}):\n    pass\n")
    assert build.check("mine.part.make", {"value": good}, "model.x") == []
    (problem,) = build.check("mine.part.make", {"value": bad}, "model.x")
    assert problem.where == "model.x.value"
    assert annotation.strip("'") in problem.what
    assert repr(bad) in problem.what


@pytest.mark.parametrize("annotation", ["Any", "np.dtype", "Size", "tuple[int, int]", "set[int]", "'not python('"])
def test_other_annotations_are_not_judged(written, annotation):
    written("part.py", f"def make(value: {annotation}, other: int = None):\n    pass\n")
    for value in (1, "a", None, [1], {"a": 1}):
        assert build.check("mine.part.make", {"value": value, "other": None}, "x") == []


@pytest.mark.parametrize(
    ("imports", "base"),
    [
        ("from vlmrun.model.connectors.mlp import MLP", "MLP"),
        ("from vlmrun.model.connectors.mlp import MLP as Base", "Base"),
        ("import vlmrun.model.connectors.mlp", "vlmrun.model.connectors.mlp.MLP"),
        ("import vlmrun.model.connectors.mlp as mlp", "mlp.MLP"),
        ("from vlmrun.model.connectors import mlp", "mlp.MLP"),
        ("from .middle import Middle", "Middle"),
        ("from . import middle", "middle.Middle"),
    ],
)
def test_an_init_is_found_in_the_module_of_the_base(written, imports, base):
    written("__init__.py", "")
    written("middle.py", "from vlmrun.model.connectors.mlp import MLP\n\n\nclass Middle(MLP):\n    pass\n")
    written("part.py", f"{imports}\n\n\nclass Loud({base}):\n    pass\n")
    supplied = frozenset({"vision_dim", "llm_dim"})
    assert build.check("mine.part.Loud", {"depth": 3}, "x", supplied) == []
    problems = build.check("mine.part.Loud", {"dept": 3, "depth": "two"}, "x", supplied)
    assert [problem.what for problem in problems] == [
        "Loud takes no argument 'dept'",
        "Loud takes int as depth, not 'two'",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "from torch.nn import Module\n\n\nclass Part(Module):\n    pass\n",
        "from mine.nowhere import Base\n\n\nclass Part(Base):\n    pass\n",
        "from mine.part import Part as Base\n\n\nclass Part(Base):\n    pass\n",
        "from abc import *\n\n\nclass Part(ABC):\n    pass\n",
        "import torch\n\n\nclass B:\n    def __init__(self):\n        pass\n\n\nclass Part(torch.X, B):\n    pass\n",
        "class Part:\n    def __new__(cls, size):\n        return object.__new__(cls)\n",
        "class Part(make()):\n    pass\n",
    ],
)
def test_a_class_whose_init_cannot_be_read_is_not_judged(written, source):
    written("part.py", source)
    assert build.check("mine.part.Part", {"size": 1}, "x") == []


def test_a_dataclass_is_a_part_and_its_real_signature_is_bound(written):
    written("part.py", "from dataclasses import dataclass\n\n\n@dataclass\nclass Part:\n    size: int\n")
    assert build.build(target("mine.part.Part", size=3)).size == 3
    with pytest.raises(ConfigError, match="unexpected keyword argument 'sise'"):
        build.build(target("mine.part.Part", size=3, sise=3))
    with pytest.raises(ConfigError, match="missing a required argument: 'size'"):
        build.build(target("mine.part.Part"))


def test_an_error_inside_the_part_stays_what_it_is(written):
    written("part.py", "def make(size):\n    return size + 'a'\n")
    with pytest.raises(TypeError, match="unsupported operand"):
        build.build(target("mine.part.make", size=3))


def test_what_the_program_supplies_is_not_a_users_to_give(written):
    written("part.py", "def make(**anything):\n    pass\n")
    assert build.check("mine.part.make", {"size": 3}, "x", frozenset({"dtype"})) == []
    assert build.check("mine.part.make", {"dtype": 3}, "x", frozenset({"dtype"})) != []


def test_a_name_that_was_imported_from_an_allowed_module_is_a_part(written):
    written("__init__.py", "from .part import make\nfrom os import system\n")
    written("part.py", "def make(size: int):\n    return size\n")
    assert build.build(target("mine.make", size=3)) == 3
    assert [problem.what for problem in build.check("mine.system", {"command": "true"}, "x")] == [
        "mine has no 'system'"
    ]


@pytest.mark.parametrize(("source", "line"), [("x = 1\ndef make(:\n", 2), ("x = '\0'\n", 1)])
def test_a_syntax_error_is_a_problem_with_file_and_line(written, source, line):
    broken = written("broken.py", source)
    written("part.py", "from mine.broken import Base\n\n\nclass Part(Base):\n    pass\n")
    for name in ("mine.broken.make", "mine.part.Part"):
        (problem,) = build.check(name, {}, "model.connector")
        assert problem.where == f"{broken}:{line}"
        assert "model.connector" in problem.fix


@pytest.mark.parametrize("package", ["", "sub/"])
def test_no_package_above_a_part_is_imported_to_check_it(written, tmp_path, package):
    mark = f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n"
    written("__init__.py", mark)
    written(f"{package}__init__.py", mark)
    written(f"{package}part.py", "def make(size):\n    pass\n")
    dotted = f"mine.{package}part.make".replace("/", ".")
    assert build.check(dotted, {"size": 1}, "x") == []
    assert build.check(dotted, {"sise": 1}, "x") != []
    assert not (tmp_path / "mark").exists()


def test_folders_without_init_are_packages_too(written):
    written("deep/er/part.py", "def make(size):\n    return size\n")
    assert build.build(target("mine.deep.er.part.make", size=3)) == 3


@pytest.mark.parametrize("dotted", ["mine", "mine..part.make", "mine.part.make.more", "mine.deep.make"])
def test_paths_that_lead_nowhere_are_sentences(written, dotted):
    written("part.py", "def make():\n    pass\n")
    (problem,) = build.check(dotted, {}, "x")
    assert problem.what.startswith("no module")
