import subprocess
import sys

import pytest

from tests.integration.jobs import HARDWARE, STAGE
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.zero import user_json
from vlmrun.zero.config import TOP_LEVEL_KEYS, deepspeed_config, refuse_unknown


def _config(zero=2, hidden_dim=32, precision="fp32", n=2, gpu="cpu", **changes):
    stage = TrainStage.model_validate(STAGE | {"zero": zero} | changes)
    hardware = HardwareConfig.model_validate(HARDWARE | {"precision": precision, "ranks_per_node": n, "gpu": gpu})
    return deepspeed_config(stage, hardware, hidden_dim=hidden_dim)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_nothing_is_left_to_deepspeed(zero):
    config = _config(zero)
    assert set(config) == TOP_LEVEL_KEYS
    assert "auto" not in str(config)
    assert config["zero_optimization"]["stage"] == zero
    # Left out, it would mean 1.0.
    assert _config(zero, optim=STAGE["optim"] | {"max_grad_norm": 0.0})["gradient_clipping"] == 0.0


def test_batch_numbers_multiply():
    config = _config(global_batch=12, micro_batch=2, n=3)
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 3
    assert config["train_batch_size"] == product == 12


def test_stage_three_partitions_narrow_models_too():
    narrow, wide = _config(3, 32)["zero_optimization"], _config(3, 4096)["zero_optimization"]
    assert narrow["stage3_param_persistence_threshold"] < 32 * 32
    assert wide["stage3_param_persistence_threshold"] == 40960
    assert wide["reduce_bucket_size"] == 4096**2
    assert narrow["memory_efficient_linear"] is False


def test_bf16_without_zero_is_an_assertion():
    with pytest.raises(AssertionError, match="bf16 needs ZeRO"):
        _config(0, precision="bf16")
    assert _config(1, precision="bf16")["bf16"] == {"enabled": True}


def test_overlap_needs_streams():
    assert _config(2, gpu="cpu")["zero_optimization"]["overlap_comm"] is False
    assert _config(2, gpu="a100_80g")["zero_optimization"]["overlap_comm"] is True


def test_a_misspelt_or_missing_top_level_key_is_refused():
    config = _config()
    with pytest.raises(AssertionError, match="gradient_cliping"):
        refuse_unknown(config | {"gradient_cliping": 1.0})
    del config["gradient_clipping"]
    with pytest.raises(AssertionError, match="gradient_clipping"):
        refuse_unknown(config)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_deepspeed_knows_every_key_we_write(zero):
    """Unknown top-level keys are ignored by DeepSpeed, so its own names are looked up here."""
    from deepspeed.runtime import constants
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {value for name, value in vars(constants).items() if name.isupper() and isinstance(value, str)}
    known |= {"zero_optimization", "wall_clock_breakdown", "bf16", "fp16"}
    config = _config(zero)
    assert set(config) <= known
    DeepSpeedZeroConfig(**config["zero_optimization"])  # strict: an unknown key raises


def _numbers(**changes):
    return {"deepspeed": STAGE["deepspeed"] | changes}


def test_a_number_that_is_given_is_handed_on():
    given = {"reduce_bucket_size": 5, "stage3_prefetch_bucket_size": 0, "stage3_max_live_parameters": 7}
    found = _config(3, **_numbers(**given))["zero_optimization"]
    assert {key: found[key] for key in given} == given


@pytest.mark.parametrize(
    ("zero", "offload", "own", "expected"),
    [
        (2, "cpu", None, {"offload_optimizer": "cpu"}),
        (3, "cpu", None, {"offload_optimizer": "cpu", "offload_param": "cpu"}),
        (3, "cpu", "none", {"offload_optimizer": "cpu"}),
        (3, "none", "cpu", {"offload_param": "cpu"}),
        (3, "nvme", "cpu", {"offload_optimizer": "nvme", "offload_param": "cpu"}),
    ],
)
def test_optimizer_state_and_parameters_lie_where_asked(zero, offload, own, expected):
    found = _config(zero, offload=offload, **_numbers(offload_param=own, nvme_path="/drive"))["zero_optimization"]
    blocks = {key: block for key, block in found.items() if key.startswith("offload")}
    assert {key: block["device"] for key, block in blocks.items()} == expected
    assert all((block.get("nvme_path") == "/drive") == (block["device"] == "nvme") for block in blocks.values())


def test_a_sample_that_two_ranks_read_counts_twice_for_deepspeed():
    stage = TrainStage.model_validate(STAGE)
    hardware = HardwareConfig.model_validate(HARDWARE | {"ranks_per_node": 4, "sequence_parallel": 2})
    config = deepspeed_config(stage, hardware, hidden_dim=32)
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 4
    assert config["train_batch_size"] == product == 2 * stage.global_batch


def test_keys_of_a_file_of_ones_own_are_deepspeeds():
    """What is handed on freely exists; a misspelt one of ours would be ignored or refused there."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig as Offload
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadParamConfig as OffloadParam

    fields = DeepSpeedZeroConfig.model_fields
    assert {field.alias or name for name, field in fields.items()} >= user_json.ZERO_FREE
    assert {*Offload.model_fields, *OffloadParam.model_fields} >= user_json.OFFLOAD_FREE


def test_no_torch_is_loaded():
    code = "import sys, vlmrun.zero.config; assert not {'torch', 'deepspeed', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
