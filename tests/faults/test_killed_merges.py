"""An average or a conversion killed at any moment leaves nothing that looks like a model, and can be given again."""

import random
import shutil
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import models
from tests.unit.models import averaging
from vlmrun import artifact
from vlmrun.formats.base import How
from vlmrun.formats.convert import compare
from vlmrun.merging import average
from vlmrun.weights.writer import Writer

N_BYTES = 60_000_000


def _model(folder, seed):
    """A weights folder of two parts without a tensor's worth of sense, and a third that is large."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"llm": (N_BYTES // 4 // 64, 64), "tower": (8, 8), "connector": (8, 8)}
    for part, shape in shapes.items():
        with Writer(folder / part, {"weight": (torch.float32, shape)}) as writer:
            writer.write("weight", [torch.randn(shape, generator=generator)])
        (folder / part / "config.json").write_text("{}")
    (folder / "model.json").write_text(
        '{"format": "vlmrun-1", "model": {}, "template": {}, "image_aspect": "pad", "adapter": null}'
    )
    return folder


def _start(folder, words=("average", "a", "b", "--weights", "0.3", "0.7", "--out", "mean")):
    return subprocess.Popen(
        [sys.executable, "-m", "vlmrun.cli", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_killed_average_leaves_nothing_that_looks_whole_and_can_be_given_again(tmp_path):
    for seed, name in enumerate("ab"):
        _model(tmp_path / name, seed)
    average.average(averaging(2, [0.3, 0.7]), [tmp_path / "a", tmp_path / "b"], tmp_path / "calm")
    expected = artifact.digest(tmp_path / "calm/llm/model.safetensors")
    moments = random.Random(3)
    killed = 0
    # The first at a random moment, the others as work begins and in it: most of the time goes into imports.
    for number, latest in enumerate((4.0, 0.0, 0.03)):
        process = _start(tmp_path)
        while number and process.poll() is None and not (tmp_path / "mean/.weights.part").exists():
            time.sleep(0.002)
        time.sleep(moments.uniform(0, latest))
        process.kill()
        process.communicate()
        if (tmp_path / "mean" / artifact.NAME).exists():
            shutil.rmtree(tmp_path / "mean")
            continue
        killed += 1
        for model in (tmp_path / "mean").rglob("model.json"):
            file = model.parent / "llm/model.safetensors"
            assert artifact.digest(file) == expected, "a folder with a description has all its weights"
    assert killed >= 1
    last = _start(tmp_path)
    said, _ = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert artifact.digest(tmp_path / "mean/weights/llm/model.safetensors") == expected
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == ["artifact.json", "lock", "weights"]


@pytest.mark.parametrize("words", [("--to", "llava"), ("--to", "megatron", "--tp", "2")], ids=lambda words: words[1])
def test_a_killed_conversion_leaves_no_folder_and_can_be_given_again(tmp_path, words):
    models.write(tmp_path / "a", 2 * N_BYTES)
    killed = 0
    for moment in (0.0, random.Random(5).uniform(0, 0.2)):
        process = _start(tmp_path, ("convert", "a", "made", *words))
        while process.poll() is None and not (tmp_path / ".made.part").exists():
            time.sleep(0.002)
        time.sleep(moment)
        process.kill()
        process.communicate()
        if not (tmp_path / "made").exists():
            killed += 1
            continue
        assert compare(tmp_path / "a", tmp_path / "made", How()) == [], "what has its name is whole"
        shutil.rmtree(tmp_path / "made")
    assert killed >= 1
    last = _start(tmp_path, ("convert", "a", "made", *words))
    said, _ = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert compare(tmp_path / "a", tmp_path / "made", How()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "made"]
