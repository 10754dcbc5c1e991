"""The DeepSpeed files of upstream (`zero_files.yaml`), and what a stage of ours tells DeepSpeed in their place."""

from pathlib import Path

import yaml

from vlmrun.zero import config as zero

FILES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))["files"]
WIDTH = 4096  # of every 7B and 8B model
# What transformers makes of "auto", from the width.
AUTO = {
    "reduce_bucket_size": WIDTH**2,
    "stage3_prefetch_bucket_size": int(0.9 * WIDTH**2),
    "stage3_param_persistence_threshold": 10 * WIDTH,
}
_RENAMED = {"gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save"}


def differences(file, stage, hardware):
    """Every number of a file, by its path, that the stage does not hand to DeepSpeed."""
    hardware = hardware.model_copy(update={"precision": "fp16"})  # where the numbers of the scaling are written
    config = zero.deepspeed_config(stage, hardware, hidden_dim=WIDTH)
    expected = list(_numbers(FILES[file]))
    assert len(expected) >= 9
    return {path: (value, ours) for path, value in expected if (ours := _at(config, path)) != value}


def _numbers(block, path=""):
    """The numbers of a file that are not the run's own; how often DeepSpeed speaks is never here."""
    for key, value in block.items():
        here = f"{path}.{key}".removeprefix(".")
        if isinstance(value, dict):
            if key not in ("optimizer", "scheduler") and value.get("device") != "none":
                yield from _numbers(value, here)
        elif (value != "auto" or key in AUTO) and key != "steps_per_print":
            yield here, AUTO.get(key, value) if value == "auto" else value


def _at(config, path):
    for key in path.split("."):
        config = config.get(_RENAMED.get(key, key), {})
    return config
