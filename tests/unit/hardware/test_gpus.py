import pytest

from vlmrun.errors import ConfigError
from vlmrun.hardware.gpus import GPUS, find


def test_names_are_keys_and_figures_are_sane():
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert gpu.bf16 == (gpu.peak_flops_bf16 > 0)
        assert gpu.is_cpu == (gpu.memory_bytes is None)
    assert GPUS["a100_80g"].memory_bytes == 80 * 2**30
    assert not GPUS["v100_32g"].bf16


def test_an_unknown_gpu_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"(?s)unknown gpu 'a100_80gb'.*did you mean 'a100_80g'"):
        find("a100_80gb")
