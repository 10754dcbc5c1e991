"""A connector, a tower and an LLM family from outside the package: checked and planned as the built-in ones are."""

import sys

import pytest

from vlmrun.arch import config_files, connectors, families, towers
from vlmrun.arch.families import Family
from vlmrun.arch.llms import llama
from vlmrun.checks import rules, table, vision
from vlmrun.config.schema import Target
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.formats import megatron_model, upstream, upstream_config
from vlmrun.plan import run as planning

NUMBERS = '''
from dataclasses import dataclass

from vlmrun.arch.connectors import Arithmetic
from vlmrun.arch.linears import Linear
from vlmrun.arch.sizes import Connector
from vlmrun.arch.towers import Arithmetic as TowerArithmetic
from vlmrun.arch.towers import Facts
from vlmrun.errors import ConfigError


@dataclass(frozen=True)
class Joined(Arithmetic):
    """`n` neighbors become one, of two layers of the tower."""

    n: int = 2

    def tokens(self, n_patches):
        if n_patches % self.n:
            raise ConfigError(f"{n_patches} patches cannot be joined by {self.n}", "model.connector.n", "a divisor")
        return n_patches // self.n

    def wanted_layers(self, n_layers):
        return [1, n_layers]

    def check_widths(self, vision_dim, llm_dim):
        if llm_dim % 2:
            raise ConfigError("an odd LLM", "model.llm", "an even one")

    def sizes(self, vision_dim, llm_dim, n_patches):
        wide, rows = 2 * self.n * vision_dim, self.tokens(n_patches)
        return Connector(((Linear("", wide, llm_dim, True), rows),), rows, wide * rows)


class Stripes(TowerArithmetic):
    """A tower whose config.json has keys of its own."""

    def facts(self):
        return Facts(self.config["wide"], self.config["deep"], self.config["stripes"], 32)
'''
TORCH = """
import torch
from torch import nn

from vlmrun.model.connectors.base import Connector
from vlmrun.model.towers.base import Tower

from own_numbers import Joined as Numbers
import own_numbers


class Joined(Connector):
    ARITHMETIC = Numbers

    def __init__(self, vision_dim: int, llm_dim: int, n: int = 2) -> None:
        super().__init__(n=n)
        self.linear = nn.Linear(2 * n * vision_dim, llm_dim)

    def forward(self, layers):
        features = torch.cat(layers, dim=-1)
        return self.linear(features.unflatten(1, (-1, self.arithmetic.n)).flatten(2))


class Derived(Joined):
    pass


class Stripes(Tower):
    ARITHMETIC = own_numbers.Stripes

    def __init__(self, config: dict | None = None, layers: list[int] | None = None, *, dtype, attention) -> None:
        super().__init__()


class Odd(Connector):
    ARITHMETIC = nn.Linear
"""
CONNECTOR = "own_parts.Joined"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Two importable files, one of them without torch."""
    (tmp_path / "own_numbers.py").write_text(NUMBERS)
    (tmp_path / "own_parts.py").write_text(TORCH)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VLMRUN_ALLOW", "own_parts,own_numbers")
    yield
    for name in ("own_parts", "own_numbers"):
        sys.modules.pop(name, None)


def _with(run, *, max_length=None, tower=None, **connector):
    target = Target.model_validate({"_target_": CONNECTOR, "weights": None, **connector})
    eye = {"layers": None, **(tower or {})}
    given = {"_target_": run.model.tower.target, **run.model.tower.arguments, **eye}
    changes = {"connector": target, "tower": Target.model_validate(given)}
    changes |= {} if max_length is None else {"max_length": max_length}
    return run.model_copy(update={"model": run.model.model_copy(update=changes)})


def _found(run):
    return [(problem.where, problem.what) for problem in table.problems(vision.RULES, run)]


@pytest.mark.parametrize("target", [CONNECTOR, "own_parts.Derived"])
def test_a_connector_of_ones_own_is_checked_without_loading_it(own, smoke, target):
    run = smoke()
    patches = towers.facts(run.model.tower).n_patches
    assert _found(_with(run, _target_=target)) == []
    assert _found(_with(run, _target_=target, max_length=patches // 2)) == [
        ("model.max_length", f"an image takes {patches // 2} tokens, a sample may have {patches // 2}: no text fits")
    ]
    odd = patches - 1
    assert _found(_with(run, _target_=target, n=odd)) == [
        ("model.connector.n", f"{patches} patches cannot be joined by {odd}")
    ]
    (found,) = _found(_with(run, _target_=target, tower={"layers": [-2]}))
    assert found == ("model.tower.layers", "this connector chooses the tower's layers itself")
    assert "own_parts" not in sys.modules


def test_a_connector_of_ones_own_is_planned_as_it_is_built(own, smoke):
    from vlmrun.build import build

    run = _with(smoke("model/llm=pico", "model/tower=pico_clip"))
    found, _ = planning.shapes(run.model)
    assert found is not None
    assert "own_parts" not in sys.modules
    target, _ = connectors.derived.connector_weights(run.model.connector)
    width = found.tower.width // found.tower.kept
    module = build(target, vision_dim=width, llm_dim=found.llm.hidden)
    assert found.connector.n_parameters == sum(parameter.numel() for parameter in module.parameters())
    assert found.connector.tokens == module.tokens(found.tower.patches) == found.tower.patches // 2


def test_an_arithmetic_that_is_none_is_an_error_not_a_traceback(own):
    with pytest.raises(ConfigError, match="is not allowed"):  # torch is no allowed package
        connectors.arithmetic(Target.model_validate({"_target_": "own_parts.Odd"}))
    wrong = Target.model_validate({"_target_": CONNECTOR, "m": 2})
    assert connectors.arithmetic(wrong) is None, "an argument that the class does not take is reported with its target"


def test_a_connector_that_counts_tokens_itself_is_refused():
    from vlmrun.model.connectors.base import Connector

    with pytest.raises(ConfigError, match="defines tokens itself"):
        type("Old", (Connector,), {"tokens": lambda self, n_patches: n_patches // 2})


def test_a_tower_of_ones_own_states_its_features(own, smoke):
    config = {"wide": 8, "deep": 3, "stripes": 40}
    run = smoke()
    target = Target.model_validate({"_target_": "own_parts.Stripes", "config": config, "layers": [-2]})
    assert towers.facts(target) == towers.Facts(8, 3, 40, 32)
    plain = run.model.connector
    run = run.model_copy(update={"model": run.model.model_copy(update={"tower": target, "max_length": 40})})
    assert run.model.connector == plain
    assert [what for _, what in _found(run)] == ["an image takes 40 tokens, a sample may have 40: no text fits"]
    far = target.model_validate({"_target_": target.target, "config": config, "layers": [9]})
    run = run.model_copy(update={"model": run.model.model_copy(update={"tower": far, "max_length": 99})})
    assert _found(run) == [("model.tower.layers", "layer 9 does not exist: the tower has 3 blocks")]
    assert "own_parts" not in sys.modules


NOVA = Family(
    "nova",
    layers=("in_proj", "out_proj"),
    sizes=llama,
    attention=("eager",),
    packable=True,
    tensor_parallel=True,
    held_as=lambda values: {**values, "model_type": "llama"},
    architecture="Nova",
    decoder="body",
    template="mpt",
    upstream={"llava": "llava_nova", "bunny": "bunny-nova"},
    megatron=True,
)
CONFIG = {
    "model_type": "nova", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 400,
}  # fmt: skip


def test_one_row_makes_a_family_known_everywhere(monkeypatch, smoke):
    from vlmrun.model.families import from_values

    llm = Target.model_validate(
        {"_target_": "vlmrun.model.llm.load", "config": CONFIG, "tokenizer": "builtin:micro-llm"}
    )
    run = smoke("hardware.ranks_per_node=2", "hardware.tensor_parallel=2")
    run = run.model_copy(update={"model": run.model.model_copy(update={"llm": llm})})

    def said() -> str:
        return "\n".join(problem.what for problem in rules.check(run))

    assert "how the layers of nova can be shared is not known" in said()
    assert families.llm(CONFIG) is None
    with pytest.raises((ValueError, KeyError)):
        from_values(dict(CONFIG))
    monkeypatch.setitem(families.FAMILIES, "nova", NOVA)
    assert "how the layers of nova" not in said()
    assert "nova knows no attention 'sdpa'" in said()
    assert config_files.llm_facts(llm).linear_layers == frozenset(NOVA.layers)
    assert families.llm(CONFIG) == families.llm(CONFIG | {"model_type": "llama"}) is not None
    assert from_values(dict(CONFIG)).model_type == "llama"
    assert "nova" in families.having("packable")
    assert upstream.LLAVA.families["nova"] == "llava_nova"
    assert upstream.BUNNY.families["nova"] == "bunny-nova"
    assert "nova" not in upstream.KOLLAVA.families
    assert upstream_config.language_model(CONFIG | {"model_type": "bunny-nova"})["architectures"] == ["NovaForCausalLM"]
    assert megatron_model.families.find("nova").megatron


def test_a_family_that_is_not_in_the_table_is_not_known():
    row = families.find("nothing")
    assert (row.layers, row.sizes, row.attention, row.packable, row.tensor_parallel, row.megatron) == (None,) * 6
    assert row.attention_like("sdpa") == "sdpa"
    assert not row.own_attention


def test_a_tower_without_its_config_is_named(smoke):
    with pytest.raises(CheckpointError):
        towers.facts(Target.model_validate({"_target_": smoke().model.tower.target, "path": "nowhere", "layers": [-2]}))
