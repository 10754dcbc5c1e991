"""Counts by arithmetic against real models without weights, for every model of conf/ that composes."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from vlmrun.arch import counts, families, published, towers
from vlmrun.arch.squares import Abstractor
from vlmrun.cli import train
from vlmrun.config.compose import conf_dir
from vlmrun.config.schema import Lora, ModelConfig, Target, Tune
from vlmrun.model import tune
from vlmrun.model.connectors import squares as built
from vlmrun.plan import meta
from vlmrun.plan import run as planning
from vlmrun.train import audit

PUBLISHED = published.published()
LORA = Lora(r=8, alpha=16.0, dropout=0.05, targets="all-linear", bias="none", modules_to_save=[])
ON_DEMAND = {"emoji_smollm2"}  # its folders are made by `make demo`
MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("[!_]*.yaml"))
PICO = sorted(path.stem for path in (conf_dir() / "model" / "llm").glob("pico*.yaml"))


@cache
def composed(*overrides: str) -> ModelConfig:
    return train.compose(["+recipe=smoke", *overrides], []).model


@pytest.mark.parametrize("kind", ["llm", "tower"])
def test_published_sizes_give_the_published_number_of_parameters(kind: str) -> None:
    for name, values in PUBLISHED[kind].items():
        eye = towers.Transformer(values, {})
        made = families.llm(values) if kind == "llm" else eye.sizes([-2])
        if made is not None:
            assert made.n_parameters == values["parameters"], name


def test_every_hub_id_of_conf_is_published() -> None:
    for kind in ("llm", "tower"):
        for path in (conf_dir() / "model" / kind).glob("*.yaml"):
            named = str(yaml.safe_load(path.read_text("utf-8")).get("path"))
            if "/" in named and "$" not in named:
                assert named in PUBLISHED[kind], path


def two_blocks(model: ModelConfig) -> ModelConfig:
    """The same with an LLM of two blocks: every further one adds the same count, and takes time to build."""
    values = dict(published.config_of(model.llm, "llm").values)
    values["n_layers" if "n_layers" in values else "num_hidden_layers"] = 2
    arguments = {**model.llm.arguments, "path": None, "config": values, "tokenizer": "builtin:micro-llm"}
    return model.model_copy(update={"llm": Target.model_validate({"_target_": model.llm.target, **arguments})})


def counted(model: ModelConfig, how: Tune, lora: Lora | None) -> dict[str, tuple[int, int]]:
    """What the trainer would count, on the meta device."""
    llm, tower = (published.config_of(getattr(model, part), part).values for part in ("llm", "tower"))
    vlm = meta.vlm(model, llm, tower, len([*(model.image_markers or []), *model.new_tokens]))
    with torch.device("meta"):
        tune.apply(vlm, how, lora)
    return {row.part: (row.n_parameters, row.n_trainable) for row in audit.count(vlm, how)}


def parts_of(name: str) -> dict[str, str]:
    """The options a model of conf/ chooses."""
    chosen = yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text("utf-8"))["defaults"]
    return {part: option for entry in chosen if isinstance(entry, dict) for part, option in entry.items()}


def hub_id(llm: str) -> str:
    """What an option of model/llm names; for one whose folder the user names (Vicuna v0), one of the same sizes."""
    named = yaml.safe_load((conf_dir() / "model" / "llm" / f"{llm}.yaml").read_text("utf-8"))["path"]
    return f"lmsys/vicuna-{'13b' if '13b' in llm else '7b'}-v1.5" if named == "???" else str(named)


def distinct() -> list[str]:
    """Models of conf/ such that every LLM's sizes are there, and every tower with every connector it is used with."""
    found, seen = [], set()
    for name in MODELS:
        parts = parts_of(name)
        if name not in ON_DEMAND and hub_id(parts["llm"]) in PUBLISHED["llm"]:
            shown = {str(PUBLISHED["llm"][hub_id(parts["llm"])]), f"{parts['tower']} {parts['connector']}"}
            if shown - seen:
                found.append(name)
            seen |= shown
    return found


def described(name: str) -> ModelConfig:
    """A model of conf/."""
    llm = hub_id(parts_of(name)["llm"])
    return composed(f"model={name}", f"model.llm.path={llm}")


@pytest.mark.parametrize("name", distinct())
def test_a_published_models_counts_are_those_of_the_model_itself(name: str) -> None:
    model = two_blocks(described(name))
    found, _ = planning.shapes(model, exact=True)
    assert found is not None
    how = Tune(llm="lora", tower="full", connector="full")
    assert counts.counts(found, how, LORA) == counted(model, how, LORA)


@pytest.mark.parametrize("name", PICO)
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_every_familys_counts_with_biases(name: str, bias: str) -> None:
    model = composed(f"model/llm={name}")
    found, _ = planning.shapes(model)
    assert found is not None
    lora = LORA.model_copy(update={"bias": bias})
    for how, adapter in ((Tune(llm="lora", tower="freeze", connector="full"), lora),
                         (Tune(llm="full", tower="freeze", connector="freeze"), None)):  # fmt: skip
        assert counts.counts(found, how, adapter) == counted(model, how, adapter)


def test_an_expression_names_targets() -> None:
    model = composed("model/llm=pico")
    found, _ = planning.shapes(model)
    assert found is not None
    lora = LORA.model_copy(update={"targets": r"llm\..*layers\.\d+\.self_attn\.(q_proj|o_proj)"})
    how = Tune(llm="lora", tower="freeze", connector="full")
    assert counts.counts(found, how, lora) == counted(model, how, lora)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_modules_that_train_whole_beside_adapters_are_counted(saved: list[str]) -> None:
    model = composed("model/llm=pico")
    found, _ = planning.shapes(model)
    assert found is not None
    lora = LORA.model_copy(update={"modules_to_save": saved})
    how = Tune(llm="lora", tower="freeze", connector="full")
    assert counts.counts(found, how, lora) == counted(model, how, lora)


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "model" / "connector").glob("*.yaml")))
def test_every_connectors_count(name: str) -> None:
    model = composed("model/llm=pico", "model/tower=pico_clip", "model.tower.config.num_hidden_layers=18",
                     "model.tower.config.image_size=64", f"model/connector={name}")  # fmt: skip
    # Resamplers are for a built model to count: `check` keeps silent about them.
    found, _ = planning.shapes(model, exact=name.startswith("resampler"))
    assert found is not None
    how = Tune(llm="full", tower="freeze", connector="full" if name != "identity" else "freeze")
    assert counts.counts(found, how, None) == counted(model, how, None)


@pytest.mark.parametrize("hidden", [32, 24])
def test_the_abstractor_is_planned_as_what_it_computes(hidden: int) -> None:
    """Products as torch counts them and saved elements as autograd keeps them, by arithmetic and off the model."""
    n_patches, width, llm_dim = 64, 32, 48
    values = {"n_tokens": 16, "hidden": hidden, "depth": 2}
    planned = Abstractor(**values).sizes(width, llm_dim, n_patches)
    connector = built.Abstractor(width, llm_dim, **values)
    kept: dict[int, int] = {}
    ours = {parameter.data_ptr() for parameter in connector.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in ours:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    given = torch.randn(1, n_patches, width)
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        made = connector([given])
    assert made.shape == (1, planned.tokens, llm_dim)
    products = 2 * sum(rows * linear.n_in * linear.n_out for linear, rows in planned.linears)
    assert products == counter.get_total_flops()
    assert planned.saved == pytest.approx(sum(kept.values()), rel=0.15)
    with torch.device("meta"):
        tower = SimpleNamespace(n_patches=n_patches)
        off_model = meta._between(SimpleNamespace(connector=built.Abstractor(width, llm_dim, **values), tower=tower))
    assert off_model.n_parameters == planned.n_parameters == sum(p.numel() for p in connector.parameters())
    assert sum(rows * layer.n_in * layer.n_out for layer, rows in off_model.linears) * 2 >= products


def test_adapters_of_a_tower_have_ranks_by_pattern() -> None:
    model = composed("model/llm=pico")
    found, _ = planning.shapes(model)
    assert found is not None
    lora = LORA.model_copy(update={"targets": ["q_proj", "fc2"], "rank_pattern": {"layers.0.self_attn.q_proj": 3}})
    how = Tune(llm="freeze", tower="lora", connector="freeze")
    llm, tower = (published.config_of(getattr(model, part), part).values for part in ("llm", "tower"))
    vlm = meta.vlm(model, llm, tower, 0)
    with torch.device("meta"):
        tune.apply(vlm, how, None, tower_lora=lora)
    trained = sum(each.numel() for each in vlm.tower.parameters() if each.requires_grad)
    assert found.tower.n_adapter(lora) == trained
    assert found.tower.n_adapter(lora) != found.tower.n_adapter(lora.model_copy(update={"rank_pattern": {}}))
