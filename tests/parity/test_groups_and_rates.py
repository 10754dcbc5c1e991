"""Schedules and parameter groups against the recorded ones."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.integration.jobs import NO_COMPAT, STAGE
from tests.parity.golden import CASES, cases, need
from vlmrun.checks import schedules
from vlmrun.config.schema import Compat, Optim
from vlmrun.train import optim

# The classes of norms that a family's recorded parameter names stand for.
NORMS = {
    "llama": "LlamaRMSNorm",
    "mpt": "LayerNorm",
    "phi": "LayerNorm",
    "phi3": "Phi3RMSNorm",
    "qwen": "Qwen2RMSNorm",
    "stablelm": "LayerNorm",
    "minicpm": "GraniteRMSNorm",
    "mistral": "MistralRMSNorm",
    "mixtral": "MixtralRMSNorm",
    "gemma": "GemmaRMSNorm",
}
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}


def _optim(**changes):
    plain = {"connector_lr": None, "weight_decay": 0.0, "betas": [0.9, 0.999], "warmup_ratio": 0.03}
    values = STAGE["optim"] | plain | {"lr": 2e-5, "max_grad_norm": 0.0}
    return Optim.model_validate(values | changes)


def test_schedules():
    recorded = np.load(need(CASES / "g6_optim/lr_schedules.npz"))
    compared = 0
    for case in cases("g6_optim/lr_schedules.json"):
        name = case["scheduler"]
        # The library's plain `constant` has no warm-up, whatever ratio is given.
        ratio = 0.0 if name == "constant" else case["warmup_ratio"]
        rate = optim.schedule(_optim(schedule=SCHEDULES[name], warmup_ratio=ratio), case["total_steps"])
        found = [case["base_lr"] * rate(step) for step in range(len(recorded[case["key"]]))]
        assert found == pytest.approx(recorded[case["key"]].tolist(), rel=1e-12, abs=1e-18), case
        compared += 1
    assert compared


def test_the_schedule_of_the_offload_file():
    """The figures of the specification's appendix, which counts the scheduler's steps: one fewer than updates made."""
    rate = optim.schedule(_optim(warmup_ratio=0.03), 1000, offloaded=True)
    assert [round(rate(step + 1), 4) for step in (1, 10, 29)] == [0.2038, 0.7050, 1.0]
    assert rate(0) == rate(31) == rate(999) == 1.0
    assert math.isclose(optim.schedule(_optim(warmup_ratio=0.03), 1000)(999), 0.0, abs_tol=1e-5)


@pytest.mark.parametrize("ratio", [0.01, 0.03])
def test_that_schedule_is_deepspeeds_own(ratio):
    """Stepped after the optimizer, as DeepSpeed's engine does; before 0.15 it did not touch the rate of the first."""
    from deepspeed.runtime.lr_schedules import WarmupLR

    settings, steps = _optim(warmup_ratio=ratio), 1000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    scheduler = WarmupLR(optimizer, warmup_max_lr=settings.lr, warmup_num_steps=math.ceil(ratio * steps))
    optimizer.param_groups[0]["lr"] = settings.lr
    rate = optim.schedule(settings, steps, offloaded=True)
    for done in range(60):
        assert math.isclose(optimizer.param_groups[0]["lr"], settings.lr * rate(done), abs_tol=1e-15), done
        optimizer.step()
        scheduler.step()


def _of_megatron(config):
    """A recorded setting in our words."""
    styles = {"inverse-square-root": "inverse_sqrt", "WSD": "wsd"}
    shapes = {"minus_sqrt": "one_minus_sqrt"}
    shape = config.get("lr_wsd_decay_style") or "cosine"
    changing = config["weight_decay_incr_style"] != "constant"
    return _optim(
        lr=config["lr"],
        min_lr=None if config["lr_decay_style"] == "constant" else config["min_lr"],
        warmup_from=config["lr_warmup_init"],
        schedule=styles.get(config["lr_decay_style"], config["lr_decay_style"]),
        decay_steps=None if config["lr_decay_style"] == "constant" else config["lr_decay_iters"],
        warmup_ratio=None,
        warmup_steps=config["lr_warmup_iters"],
        cooldown_steps=config.get("lr_wsd_decay_iters"),
        cooldown_shape=shapes.get(shape, shape),
        weight_decay=config["start_weight_decay"],
        weight_decay_end=config["end_weight_decay"] if changing else None,
        weight_decay_schedule=config["weight_decay_incr_style"],
    )


def test_megatrons_rates_and_weight_decays():
    compared = 0
    for case in cases("g9_megatron_data/lr.json")["cases"]:
        config = case["config"]
        if config["lr_warmup_fraction"] is not None:
            continue  # a share that is not rounded: ours is a whole number of updates
        settings, steps = _of_megatron(config), config["train_iters"]
        assert not list(schedules.schedule(settings, "optim")), case["id"]
        rate = optim.schedule(settings, steps, batch=config["global_batch_size"])
        found = [settings.lr * rate(number - 1) for number in case["iterations"]]
        assert found == pytest.approx(case["lr"], rel=0, abs=1e-15), case["id"]
        decay = optim.weight_decay(settings, steps)
        found = [settings.weight_decay if decay is None else decay(number - 1) for number in case["iterations"]]
        assert found == pytest.approx(case["weight_decay"], rel=0, abs=1e-15), case["id"]
        compared += 1
    assert compared


def test_what_megatron_refuses_is_refused():
    refused = cases("g9_megatron_data/lr.json")["refused"]
    assert refused
    for case in refused:
        assert list(schedules.schedule(_of_megatron(case["config"]), "optim")), case["id"]


class _Tree(nn.Module):
    """Modules that have the recorded parameters at their recorded names, norms of the recorded class."""


def _rebuild(shapes, trainable, norm):
    kinds = {norm: type(norm, (nn.Module,), {}), "LayerNorm": type("LayerNorm", (nn.Module,), {})}
    root = _Tree()
    for name, shape in shapes:
        node = root
        *path, last = _ours(name).split(".")
        for depth, part in enumerate(path):
            if part not in dict(node.named_children()):
                is_norm = depth == len(path) - 1 and ("norm" in part.lower())
                kind = _Tree
                if is_norm:
                    kind = kinds["LayerNorm" if path[0] == "tower" else norm]
                node.add_module(part, kind())
            node = node.get_submodule(part)
        node.register_parameter(last, nn.Parameter(torch.zeros(shape), requires_grad=name in trainable))
    return root


def _ours(name):
    part = "connector" if "mm_projector" in name else "tower" if "vision_tower" in name else "llm"
    return f"{part}.{name}"


@pytest.mark.parametrize("family", ["llava", "bunny"])
def test_every_parameter_has_its_recorded_rate_and_decay(family):
    compared = 0
    for case in cases(f"g6_optim/param_groups_{family}.jsonl.gz"):
        rates = {"connector_lr": case["mm_projector_lr"], "tower_lr": case["mm_projector_lr"]}
        chosen = _optim(lr=case["learning_rate"], weight_decay=case["weight_decay"], **rates)
        vlm = _rebuild(case["all_params"], set(case["trainable"]), NORMS[case["llm"]])
        compat = Compat.model_validate(NO_COMPAT | {"decay_unlisted_norms": True})
        found = {
            name: (group.lr, group.weight_decay) for group in optim.groups(vlm, chosen, compat) for name in group.names
        }
        wanted = {_ours(name): (g["lr"], g["weight_decay"]) for g in case["groups"] for name in g["names"]}
        assert found == wanted, case["id"]
        assert all((g["betas"], g["eps"]) == (chosen.betas, chosen.eps) for g in case["groups"])
        compared += 1
    assert compared


def test_by_default_no_norm_decays():
    vlm = _rebuild([("model.layers.0.input_layernorm.weight", [4]), ("model.x.weight", [4])],
                   {"model.layers.0.input_layernorm.weight", "model.x.weight"}, "Qwen2RMSNorm")  # fmt: skip
    decays = {n: g.weight_decay for g in optim.groups(vlm, _optim(weight_decay=0.1)) for n in g.names}
    assert decays == {"llm.model.x.weight": 0.1, "llm.model.layers.0.input_layernorm.weight": 0.0}


def test_the_offload_file_has_one_group():
    vlm = _rebuild([("a.bias", [2]), ("mm_projector.weight", [2])], {"a.bias", "mm_projector.weight"}, "LayerNorm")
    compat = Compat.model_validate(NO_COMPAT | {"offload_schedule": True})
    (group,) = optim.groups(vlm, _optim(weight_decay=0.1), compat)
    assert (set(group.names), group.weight_decay) == ({"llm.a.bias", "connector.mm_projector.weight"}, 0.1)
    assert len(optim.groups(vlm, _optim(weight_decay=0.1))) == 2
