"""Rules about engines: each is broken once, and a sound run breaks none."""

import json
from functools import lru_cache

import pytest

from vlmrun.arch import families
from vlmrun.checks import engines, offload, rules, table
from vlmrun.config.compose import compose
from vlmrun.config.schema import Target
from vlmrun.config.validate import validate


@lru_cache(maxsize=1)
def _smoke():
    run, problems = validate(compose(["+recipe=smoke"]).tree)
    assert problems == []
    return run


def _changed(*, numbers=None, hardware=None, llm=None, tune=None, **stage):
    """The smoke run with its `instruct` stage, that stage's deepspeed numbers, the hardware or the LLM changed."""
    run = _smoke()
    old = run.stage["instruct"]
    if tune:
        stage["tune"] = old.tune.model_copy(update={"llm": tune})
    model = run.model
    if llm:
        model = model.model_copy(update={"llm": Target.model_validate({"_target_": model.llm.target, "config": llm})})
    stage["deepspeed"] = old.deepspeed.model_copy(update=numbers or {})
    return run.model_copy(
        update={
            "stage": run.stage | {"instruct": old.model_copy(update=stage)},
            "hardware": run.hardware.model_copy(update=hardware or {}),
            "model": model,
        }
    )


def _found(**changes):
    return [
        f"{problem.where}: {problem.what} | {problem.fix}"
        for problem in table.problems([*engines.RULES, *offload.RULES], _changed(**changes))
    ]


def test_the_smoke_recipe_is_sound():
    assert _found() == []
    assert _found(engine="fsdp", zero=3, offload="cpu") == []
    assert _found(zero=3, offload="cpu", numbers={"offload_param": "none"}) == []


TWO = {"ranks_per_node": 2, "launcher": "torchrun"}
RULES = {
    "fsdp and ZeRO-1": ({"engine": "fsdp", "zero": 1}, "always cuts gradients"),
    "fsdp and a drive": ({"engine": "fsdp", "zero": 3, "offload": "nvme"}, "host memory only"),
    "fsdp and a JSON": ({"engine": "fsdp", "zero": 3, "numbers": {"config": "x.json"}}, "reads no DeepSpeed JSON"),
    "parameters below ZeRO-3": ({"zero": 2, "numbers": {"offload_param": "cpu"}}, "only ZeRO-3 cuts parameters"),
    "parameters of another engine": (
        {"engine": "fsdp", "zero": 3, "numbers": {"offload_param": "cpu"}},
        "only ZeRO-3 cuts parameters, and so can offload them | stage.instruct.deepspeed.offload_param=null",
    ),
    "a drive for nothing": ({"numbers": {"nvme_path": "/drive"}}, "nothing is offloaded to a drive"),
    "nothing kept": ({"offload_checkpoints": True}, "nothing to offload | stage.instruct.gradient_checkpointing=true"),
    "a drive below ZeRO-3": (
        {"zero": 2, "offload": "nvme"},
        "offload=nvme needs ZeRO-3 (zero is 2) | stage.instruct.zero=3",
    ),
    "which drive": ({"zero": 3, "offload": "nvme"}, "needs a folder on a local NVMe drive"),
    "no such folder": ({"zero": 3, "offload": "nvme", "numbers": {"nvme_path": "/no/drive"}}, "/no/drive is no folder"),
    "ZeRO++ below ZeRO-3": ({"zero": 2, "numbers": {"zero_quantized_weights": True}}, "(zero_quantized_weights) is of"),
    "ZeRO++ on a CPU": ({"zero": 3, "numbers": {"zero_quantized_gradients": True}}, "exist for GPUs only"),
    "hpZ groups": ({"zero": 3, "numbers": {"zero_hpz_partition_size": 2}}, "1 rank(s) cannot be cut into groups of 2"),
    "groups of ranks": ({"hardware": {"tensor_parallel": 2}}, "1 rank(s) cannot be cut into groups of 2"),
    "both kinds": (
        {"hardware": {"ranks_per_node": 4, "tensor_parallel": 2, "sequence_parallel": 2}},
        "together are not built",
    ),
    "heads": ({"hardware": {"ranks_per_node": 3, "sequence_parallel": 3}}, "num_attention_heads cannot be shared by 3"),
    "layers that do not divide": (
        {"hardware": {"ranks_per_node": 3, "tensor_parallel": 3}},
        "num_attention_heads cannot be shared by 3 ranks | hardware.tensor_parallel=1 or 2 or 4",
    ),
    "width that does not divide": (
        {
            "hardware": {"ranks_per_node": 4, "tensor_parallel": 4},
            "llm": {"model_type": "llama", "num_attention_heads": 8, "intermediate_size": 66},
        },
        "66 intermediate_size cannot be shared by 4 ranks | hardware.tensor_parallel=1 or 2",
    ),
    "unknown layers": (
        {"hardware": TWO | {"tensor_parallel": 2}, "llm": {"model_type": "phi3"}},
        "how the layers of phi3 can be shared is not known",
    ),
    "own attention": (
        {"hardware": TWO | {"sequence_parallel": 2}, "llm": {"model_type": "mpt"}},
        "mpt attends in its own way",
    ),
    "sliding window": (
        {"hardware": TWO | {"sequence_parallel": 2}, "llm": {"model_type": "mistral", "sliding_window": 16}},
        "attends to the last 16 tokens only",
    ),
    "shared layers that do not learn": (
        {"tune": "freeze", "hardware": TWO | {"tensor_parallel": 2, "precision": "bf16"}, "zero": 1},
        "DeepSpeed's ZeRO-1 in bf16 fails where no shared layer learns",
    ),
    "adapters and shared layers": (
        {"tune": "lora", "hardware": TWO | {"tensor_parallel": 2}},
        "tensor parallelism with tune.llm lora is not built",
    ),
    "tensor parallel without DeepSpeed": (
        {"engine": "fsdp", "zero": 3, "hardware": TWO | {"tensor_parallel": 2}},
        "engine fsdp has no tensor parallelism",
    ),
    "sequence parallel on one process": (
        {"engine": "plain", "hardware": TWO | {"sequence_parallel": 2}},
        "engine plain is one process",
    ),
    "capped scores": (
        {"hardware": TWO | {"sequence_parallel": 2}, "llm": {"model_type": "gemma2"}},
        "gemma2 attends in its own way",
    ),
    "other kernels over shared sequences": (
        {"hardware": TWO | {"sequence_parallel": 2, "attention": "xformers"}},
        "sequence parallelism attends through sdpa here | hardware.attention=sdpa",
    ),
    "eager over shared sequences": (
        {"hardware": TWO | {"sequence_parallel": 2, "attention": "eager"}},
        "sequence parallelism attends through sdpa here",
    ),
    "packed rows": (
        {"packing": {"length": 64}, "hardware": TWO | {"sequence_parallel": 2}},
        "cannot keep the samples of a packed row apart | hardware.sequence_parallel=1, or stage.instruct.packing=null",
    ),
    "no JSON": ({"numbers": {"config": "/no/such.json"}}, "cannot read /no/such.json: No such file"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_told(rule):
    changes, message = RULES[rule]
    assert any(message in line for line in _found(**changes)), _found(**changes)


def test_the_checks_of_a_run_include_these():
    run = _changed(zero=3, offload="nvme")
    assert any("nvme_path is null" in problem.what for problem in rules.check(run))


def test_the_families_that_can_be_shared_are_those_transformers_plans_so():
    from transformers import CONFIG_MAPPING

    for family in {*families.having("tensor_parallel")} - {"minicpm"}:
        assert set(CONFIG_MAPPING[family].base_model_tp_plan.values()) == {"colwise", "rowwise"}, family
    assert set(CONFIG_MAPPING["phi3"].base_model_tp_plan.values()) - {"colwise", "rowwise"}


def test_a_drive_needs_libaio_and_a_folder_one_may_write(tmp_path, monkeypatch):
    changes = {"zero": 3, "offload": "nvme", "numbers": {"nvme_path": str(tmp_path)}}
    monkeypatch.setattr(offload, "find_library", lambda name: None)
    assert [line for line in _found(**changes) if "apt-get install libaio-dev" in line]
    monkeypatch.setattr(offload, "find_library", lambda name: "libaio.so.1")
    assert _found(**changes) == []
    monkeypatch.setattr(offload.os, "access", lambda path, mode: False)
    assert any("cannot be written" in line for line in _found(**changes))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_no_object_is_told(tmp_path, text):
    path = tmp_path / "own.json"
    path.write_text(text)
    assert any("is no JSON" in line or "holds no JSON object" in line for line in _found(numbers={"config": str(path)}))


def test_every_conflict_of_a_file_is_told_at_once(tmp_path):
    path = tmp_path / "own.json"
    own = {
        "train_batch_size": 7,
        "gradient_clipping": 9.0,
        "scheduler": {"type": "WarmupLR", "params": {}},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.5, "betas": "auto"}},
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu"},
            "overlap_com": True,
            "sub_group_size": "big",
        },
        "gradient_cliping": 1.0,
        "steps_per_print": 10,
    }
    path.write_text(json.dumps(own))
    lines = _found(numbers={"config": str(path)})
    wanted = [
        "train_batch_size is 7, the stage's is",
        "set stage.instruct.global_batch",
        "gradient_clipping is 9.0, the stage's is",
        "scheduler contradicts the stage",
        "optimizer.params.lr is 0.5",
        "bf16.enabled is true, the stage's is false | take it out, or set hardware.precision",
        "zero_optimization.stage is 3, the stage's is",
        'zero_optimization.offload_optimizer.device is "cpu", the stage\'s is "none"',
        "zero_optimization.overlap_com is no key",
        "did you mean 'overlap_comm'",
        'zero_optimization.sub_group_size is "big"',
        "gradient_cliping is no key",
        "did you mean 'gradient_clipping'",
    ]
    missing = [text for text in wanted if not any(text in line for line in lines)]
    assert missing == [], lines
    assert len(lines) == 10
    assert not any("steps_per_print is" in line for line in lines)


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"zero_optimization": {"reduce_bucket_size": -5}}, "reduce_bucket_size is -5 | a whole number or"),
        ({"zero_optimization": {"sub_group_size": 0.5}}, "sub_group_size is 0.5 | a whole number or"),
        ({"zero_optimization": {"sub_group_size": True}}, "sub_group_size is true | a whole number or"),
        ({"zero_optimization": {"overlap_comm": 3}}, "overlap_comm is 3 | true, false or"),
        ({"zero_optimization": {"gather_16bit_weights_on_model_save": 1}}, "gather_16bit_weights_on_model_save is 1"),
        ({"fp16": {"loss_scale_window": "long"}}, 'fp16.loss_scale_window is "long" | a whole number or'),
        ({"steps_per_print": "often"}, 'steps_per_print is "often" | a whole number or'),
        ({"wall_clock_breakdown": "no"}, 'wall_clock_breakdown is "no" | true, false or'),
        ({"aio": 3}, "aio is 3 | a block"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_told(tmp_path, own, told):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    (line,) = _found(numbers={"config": str(path)})
    assert told in line


@pytest.mark.parametrize(
    "own",
    [
        {"optimizer": 3, "scheduler": []},
        {"optimizer": {"type": "AdamW", "params": 3}, "scheduler": {"type": "WarmupLR", "params": 3}},
        {"zero_optimization": 3, "fp16": [], "bf16": None},
        {"zero_optimization": {"offload_param": "cpu"}},
    ],
    ids=str,
)
def test_a_file_of_any_shape_is_told_and_not_a_crash(tmp_path, own):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    assert _found(numbers={"config": str(path)})


def test_what_ours_leaves_out_may_be_said_in_a_file(tmp_path):
    path = tmp_path / "own.json"
    zero = {"zero_hpz_partition_size": 1, "memory_efficient_linear": False, "offload_param": {"device": "none"}}
    path.write_text(json.dumps({"tensor_parallel": {"autotp_size": 1}, "zero_optimization": zero}))
    assert _found(numbers={"config": str(path)}) == []
