"""What `check` says of slices, expressions for LoRA, and MiniCPM-V's recipes, before anything is loaded."""

import copy

import pytest

from tests import pico_minicpm
from vlmrun.checks import rules as checks
from vlmrun.config.compose import compose
from vlmrun.config.validate import validate


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The recipe, shrunk and composed: a plain dict."""
    place = tmp_path_factory.mktemp("slices")
    pico_minicpm.llm(place / "llm")
    pico_minicpm.records(place)
    composed = compose(
        [
            "+recipe=minicpm_v25_lora", "hardware=cpu", "hardware.precision=fp32", "stage.lora.zero=2",
            f"model.llm.path={place / 'llm'}", "model.llm.tokens=null", "model/tower=pico_navit",
            "model.connector.weights=null", "model.connector.queries=4", "model.max_length=256",
            *(f"data.{name}.annotations={place / 'data.json'}" for name in ("minicpm", "minicpm_eval")),
            *(f"data.{name}.images={place / 'images'}" for name in ("minicpm", "minicpm_eval")),
        ]
    )  # fmt: skip
    assert not composed.problems
    return composed.tree


def _check(tree, changes=None):
    """Places and words of every problem, after values at dotted keys were changed."""
    changed = copy.deepcopy(tree)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        node = changed
        for parent in parents:
            node = node[parent]
        node[last] = value
    run, problems = validate(changed)
    return [(problem.where, problem.what) for problem in (checks.check(run) if run else problems)]


def test_the_recipe_has_no_problem(tree):
    assert _check(tree) == []


_TARGETS, _RECORDS = "stage.lora.lora.targets", "stage.lora.compat.records"
_MLP = {"_target_": "vlmrun.model.connectors.mlp.MLP", "depth": 2, "weights": None}
_FIXED = {"_target_": "vlmrun.model.connectors.resampler.FixedResampler", "queries": 5, "weights": None}
_GRIDS = {"grids": [[32, 64]], "merge": "flat"}
_ASPECT = "stage.lora.image_aspect"
WRONG = {
    "no slices": ({"model.tiles": None}, _ASPECT, "image_aspect is slices, but model.tiles"),
    "tiles": ({"model.tiles": _GRIDS}, _ASPECT, "image_aspect is slices"),
    "slices for anyres": ({_ASPECT: "anyres"}, _ASPECT, "image_aspect is anyres"),
    "a connector": ({"model.connector": _MLP}, "model.connector", "shapes of their own"),
    "no room": ({"model.max_length": 40}, "model.max_length", "up to 40 tokens"),
    "no square": ({"model.connector": _FIXED}, "model.connector", "5 form none"),
    "an unknown key": ({"model.tiles.max_slice": 4}, "model.tiles", "unknown key 'max_slice'"),
    "a draft": ({"stage.lora.image_decode": "draft"}, "stage.lora.image_decode", "too small for the tiles of slices"),
    "no expression": ({_TARGETS: "llm(("}, _TARGETS, "no regular expression"),
    "no match": ({_TARGETS: "llm.*qq_proj"}, _TARGETS, "matches no layer"),
    "half a name": ({_TARGETS: "q_proj"}, _TARGETS, "matches no layer"),
    "other labels": ({"stage.lora.compat.labels": "llava"}, "stage.lora.compat.labels", "llava never cut"),
    "no labels": (
        {"stage.lora.compat.labels": "minicpm", "model.template": "vicuna_v1"},
        "stage.lora.compat.labels",
        "its own templates",
    ),
    "records": ({"stage.lora.compat.labels": "minicpm", _RECORDS: True}, _RECORDS, "MiniCPM-V's is another"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_at_its_place(tree, name):
    changes, where, words = WRONG[name]
    found = _check(tree, changes)
    assert any(place == where and words in what for place, what in found), found


def test_marks_must_be_tokens(tree):
    """Of an LLM without them: slices without marks go with any."""
    micro = {"model.llm.path": "builtin:micro-llm", "model.template": "micro", "model.max_length": 128}
    (found,) = [what for where, what in _check(tree, micro) if where == "model.tiles.marks"]
    assert "</image>, </slice>, <image>, <slice>" in found
    micro["stage.lora.lora.modules_to_save"] = []  # its head is its embedding
    assert _check(tree, micro | {"model.tiles.marks": None}) == []


def test_a_token_image_is_a_mark_or_in_the_way(tree):
    assert any("has a token <image> of its own" in what for _, what in _check(tree, {"model.tiles.marks": None}))
