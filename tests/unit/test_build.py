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
