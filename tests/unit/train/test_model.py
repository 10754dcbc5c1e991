"""What is known of a model before it is loaded for training."""

import json

import pytest

from tests.integration.jobs import HARDWARE, STAGE
from tests.pico import pico_model_config
from vlmrun.config.job import StageJob
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.errors import CheckpointError
from vlmrun.train import model

WIDE = 4096


def _bucket(llm, folder, **stage):
    """DeepSpeed's reduce bucket, which is the square of the LLM's width."""
    stage = TrainStage.model_validate(STAGE | stage)
    parts = pico_model_config(folder)
    target = parts.llm.model_validate({"_target_": parts.llm.target, **llm})
    job = StageJob.model_construct(
        name="pretrain",
        model=parts.model_copy(update={"llm": target}),
        hardware=HardwareConfig.model_validate(HARDWARE),
        parents={"before": str(folder / "before")},
    )
    return model.deepspeed_config(job, stage)["zero_optimization"]["reduce_bucket_size"]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mpt", "d_model": WIDE},
        {"model_type": "gpt2", "n_embd": WIDE},
        {"model_type": "llama", "hidden_size": WIDE},
        {"model_type": "llava", "text_config": {"hidden_size": WIDE}},
    ],
    ids=lambda config: config["model_type"],
)
def test_buckets_are_as_large_as_the_llm_is_wide(config, tmp_path):
    """`llava_mpt_7b` was trained with buckets for a width of 1024: MPT calls its width d_model."""
    assert _bucket({"config": config}, tmp_path) == WIDE**2
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert _bucket({"path": str(tmp_path)}, tmp_path) == WIDE**2
    (tmp_path / "before" / "llm").mkdir(parents=True)
    (tmp_path / "before" / "model.json").write_text("{}")
    (tmp_path / "before" / "llm" / "config.json").write_text(json.dumps(config))
    assert _bucket({"config": {"model_type": "llama"}}, tmp_path, init_from="before") == WIDE**2


def test_a_width_that_is_not_stated_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="has no 'hidden_size'"):
        _bucket({"config": {"model_type": "own"}}, tmp_path)
