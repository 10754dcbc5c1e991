"""Rules of merge, average and search: every broken one is found before anything is loaded, with how to mend it."""

import copy
from functools import cache

import pytest
import yaml

from vlmrun.checks import rules
from vlmrun.config import derived
from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.schema import RunConfig
from vlmrun.config.validate import validate

SEARCH = [
    "+stage@stage.search=search",
    "stage.search.models=[merge,merge2]",
    "stage.search.data=[shapes_test]",
    "stage.search.divisions=2",
]
METHODS = sorted(path.stem for path in (conf_dir() / "stage/method").glob("*.yaml"))


@cache
def tree():
    """The smoke recipe with a search, composed once."""
    return compose(["+recipe=smoke", *SEARCH]).tree


def method(name, **changes):
    text = (conf_dir() / f"stage/method/{name}.yaml").read_text().replace("${seed}", "0")
    return yaml.safe_load(text) | changes


def run_of(changes):
    """The run with values of its stages changed: `average.weights` -> value."""
    changed = copy.deepcopy(tree())
    for key, value in changes.items():
        stage, name = key.split(".")
        changed["stage"][stage][name] = value
    run, problems = validate(changed)
    assert isinstance(run, RunConfig), problems
    return run


def found(changes):
    run = run_of(changes)
    problems = rules.check(run, here=False)
    return [f"{problem.where}: {problem.what} | {problem.fix}" for problem in problems]


BASE = {"average.base_model": "instruct"}
SEARCHED = {"search.method": method("ties"), "search.base_model": "instruct"}
HALF = {"tensors": "a", "weights": [0.5, 0.5]}
RULES = {
    "no weights": ({"average.weights": None}, "there are no weights | one per model"),
    "weights of another number": ({"average.weights": [0.5, 0.3, 0.2]}, "2 models, 3 weights"),
    "weights of another sum": ({"average.weights": [0.5, 0.6]}, "sum to 1.1, not 1 |"),
    "weights that sum to nothing": (
        {"average.weights": [1.0, -1.0], "average.method": method("linear", sum="normalize")},
        "the weights sum to 0: they cannot be divided",
    ),
    "weights and ema": ({"average.ema": 0.5}, "both weights and ema are given"),
    "twice the same": ({"average.models": ["merge", "merge"]}, "a model is named twice"),
    "no base": ({"average.method": method("ties")}, "ties counts changes from a base model"),
    "a base in vain": (BASE, "linear takes no base model | stage.average.base_model=null"),
    "the base among the models": (
        {"average.method": method("ties"), "average.base_model": "merge"},
        "it changed nothing",
    ),
    "slerp of three": (
        {
            "average.method": method("slerp"),
            "average.models": ["instruct", "merge", "merge2"],
            "average.weights": [0.2, 0.4, 0.4],
        },
        "slerp takes 2 models, but there are 3",
    ),
    "stock with weights": (
        BASE | {"average.method": method("model_stock")},
        "finds its own weights | stage.average.weights=null",
    ),
    "densities": (
        BASE | {"average.method": method("ties", density=[0.1, 0.2, 0.3])},
        "2 models, 3 densities",
    ),
    "chances": (BASE | {"average.method": method("della", density=0.9)}, "chances would run from 0.75 to 1.05"),
    "a bad pattern": (
        {"average.rules": [HALF | {"tensors": "("}]},
        "stage.average.rules[0].tensors: '(' is no regular expression",
    ),
    "a rule's weights": (
        {"average.rules": [HALF, HALF | {"weights": [0.5, 0.6]}]},
        "stage.average.rules[1].weights: the weights sum to 1.1",
    ),
    "an unknown base": (
        {"average.method": method("ties"), "average.base_model": "instrukt"},
        "stage.average.base_model: 'instrukt' is n",
    ),
    "an unknown model": ({"average.models": ["merge", "merge3"]}, "stage.average.models: 'merge3' is n"),
    "not an adapter": ({"merge.init_from": "instruct"}, "stage.merge.init_from: 'instruct' has no adapters to merge"),
    "nor this": ({"merge.adapters": ["instruct"]}, "stage.merge.adapters: 'instruct' has no adapters to merge"),
    "twice the same adapter": ({"merge.adapters": ["lora"]}, "an adapter is named twice"),
    "one weight for two": ({"merge.adapters": ["lora2"], "merge.weights": [1.0]}, "2 adapters, 1 weights"),
    "fp16 into another type": ({"merge.arithmetic": "fp16"}, "written as fp16 | stage.merge.dtype=fp16"),
    "nothing to search": ({"search.divisions": None}, "there is no weight to try | stage.search.divisions=10"),
    "two ways to search": ({"search.weights": [[1.0, 0.0]]}, "both weights and divisions are given"),
    "an unknown number": (
        SEARCHED | {"search.grid": {"densty": [0.1]}},
        "ties has no number 'densty' | did you mean 'density'?",
    ),
    "a value out of range": (
        SEARCHED | {"search.grid": {"density": [0.5, 1.5]}},
        "density = 1.5: input should be less than or equal to 1",
    ),
    "chances of a grid": (
        SEARCHED | {"search.method": method("della"), "search.grid": {"epsilon": [0.1, 0.6]}},
        "chances would run from -0.1 to 1.1",
    ),
    "a point's weights": (
        {"search.divisions": None, "search.weights": [[0.5, 0.5], [0.5, 0.6]]},
        "stage.search.weights[1]: the weights sum to 1.1",
    ),
    "stock to search": (SEARCHED | {"search.method": method("model_stock")}, "model_stock has nothing to search"),
}


@pytest.mark.parametrize(("changes", "wanted"), RULES.values(), ids=RULES.keys())
def test_a_broken_rule_is_found(changes, wanted):
    said = found(changes)
    assert any(wanted in line for line in said), said


def test_the_recipe_with_a_search_is_sound():
    assert found({}) == []


@pytest.mark.parametrize("name", METHODS)
def test_every_shipped_method_is_sound(name):
    base = None if name in ("linear", "slerp") else "instruct"
    weights = None if name == "model_stock" else [0.5, 0.5]
    changes = {"method": method(name), "base_model": base}
    assert found({f"average.{key}": value for key, value in (changes | {"weights": weights}).items()}) == []
    grid = {"scale": [0.5, 1.0]} if base else {}
    if name != "model_stock":
        assert found({f"search.{key}": value for key, value in (changes | {"grid": grid}).items()}) == []


def test_a_method_is_chosen_like_any_option():
    result = compose(["+recipe=smoke", "stage/method@stage.average.method=dare_ties", "seed=4"])
    assert result.problems == []
    assert result.tree["stage"]["average"]["method"] == method("dare_ties", seed=4)
    (problem,) = compose(["+recipe=smoke", "stage/method@stage.average.method=tiess"]).problems
    assert "did you mean 'ties'" in problem.fix


def test_points_are_all_combinations_in_order():
    weights = {"search.divisions": None, "search.weights": [[1.0, 0.0], [0.3, 0.7]]}
    points = derived.points(run_of(SEARCHED | weights | {"search.grid": {"density": [0.2, 0.5]}}).stage["search"])
    assert [(point.weights, point.method.density) for point in points] == [
        ([1.0, 0.0], 0.2), ([0.3, 0.7], 0.2), ([1.0, 0.0], 0.5), ([0.3, 0.7], 0.5),
    ]  # fmt: skip
    assert {point.base_model for point in points} == {"instruct"}


def test_divisions_cut_the_simplex():
    points = derived.points(run_of({"search.models": ["instruct", "merge", "merge2"]}).stage["search"])
    assert [point.weights for point in points] == [
        [1, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1],
    ]  # fmt: skip


def test_ema_fades_and_sums_to_one():
    changes = {"average.weights": None, "average.ema": 0.75, "average.models": ["instruct", "merge", "merge2"]}
    assert derived.average_weights(run_of(changes).stage["average"]) == pytest.approx([0.5625, 0.1875, 0.25])
    assert found(changes) == []
