"""Files that are torn, changed or programs are refused with the reason, and nothing is written."""

import argparse
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.unit.formats.conftest import differences, to
from vlmrun import artifact
from vlmrun.errors import CheckpointError
from vlmrun.weights.pickle_file import read_pickle
from vlmrun.weights.reader import Reader


class _Program:
    """What a malicious pickle holds: loading it would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
def test_a_pickle_with_code_is_refused_with_the_reason(tmp_path, model, how):
    folder, sign = tmp_path / "theirs", tmp_path / "ran"
    to(model, folder, "llava")
    (folder / "vlmrun.json").unlink()
    tensors = dict(load_file(folder / "model.safetensors")) | {"extra": _Program(f"touch {sign}")}
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if how == "bare":
        path.write_bytes(pickle.dumps(_Program(f"touch {sign}")))
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError) as caught:
        to(folder, tmp_path / "no", "native")
    said = str(caught.value)
    assert ("posix.system, which is code" in said) or (how == "bare" and "more than a table of tensors" in said)
    assert str(path) in said
    assert not sign.exists()
    assert not (tmp_path / "no").exists()


def test_a_code_carrying_file_beside_the_weights_is_refused_as_well(tmp_path, model):
    to(model, tmp_path / "theirs", "mm_projector")
    torch.save({"model.mm_projector.0.weight": _Program("true")}, tmp_path / "theirs/mm_projector.bin")
    with pytest.raises(CheckpointError, match="which is code"):
        to(tmp_path / "theirs", tmp_path / "no", "native", base=model, tower=model / "tower")
    to(model, tmp_path / "megatron", "megatron")
    file = tmp_path / "megatron/iter_0000001/mp_rank_00/model_optim_rng.pt"
    (tmp_path / "megatron/vlmrun.json").unlink()
    held = read_pickle(file, [argparse.Namespace])
    torch.save(held | {"args": _Program("true")}, tmp_path / "new.pt")  # `held` is mapped from the file itself
    (tmp_path / "new.pt").replace(file)
    with pytest.raises(CheckpointError, match="which is code"):
        to(tmp_path / "megatron", tmp_path / "no", "native")


def test_plain_records_are_no_code(tmp_path):
    torch.save({"args": argparse.Namespace(layers=2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace, which is code"):
        read_pickle(tmp_path / "x.pt")
    assert read_pickle(tmp_path / "x.pt", [argparse.Namespace])["args"].layers == 2
    torch.save([1, 2], tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="no table"):
        read_pickle(tmp_path / "y.pt")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0.0, 1.0), bit=st.integers(0, 7), cut=st.booleans())
def test_a_bin_file_with_any_bit_flipped_or_its_end_cut_off_is_noticed(tmp_path_factory, where, bit, cut):
    folder = tmp_path_factory.mktemp("bin")
    path = folder / "pytorch_model.bin"
    tensors = {"a": torch.arange(300.0), "b": torch.arange(50).half()}
    torch.save(tensors, path)
    content = bytearray(path.read_bytes())
    place = min(int(where * len(content)), len(content) - 1)
    if cut:
        content = content[:place]
    else:
        content[place] ^= 1 << bit
    path.write_bytes(content)
    try:
        reader = Reader(folder)
        found = {name: reader.get(name) for name in reader.names()}
    except CheckpointError:
        return
    # Bytes that carry nothing (padding, times, comments) may change; what is read may not.
    assert not cut
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0.0, 1.0), bit=st.integers(0, 7), cut=st.booleans())
def test_a_converted_folder_with_any_weight_changed_is_noticed(tmp_path_factory, converted, where, bit, cut):
    folder = tmp_path_factory.mktemp("changed") / "copy"
    shutil.copytree(converted, folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    place = min(int(where * len(content)), len(content) - 1)
    if cut:
        content = content[:place]
    else:
        content[place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors has changed"):
        to(folder, folder.parent / "no", "native")


@pytest.fixture(scope="module")
def converted(tmp_path_factory, model):
    """The model as upstream has it, written by us."""
    return _made(tmp_path_factory.mktemp("converted") / "llava", model)


def _made(folder: Path, model: Path) -> Path:
    to(model, folder, "llava")
    return folder


def test_shards_that_are_missing_or_torn_are_noticed_without_our_digests(tmp_path, converted):
    shutil.copytree(converted, tmp_path / "theirs")
    (tmp_path / "theirs/vlmrun.json").unlink()
    path = tmp_path / "theirs/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        to(tmp_path / "theirs", tmp_path / "no", "native")
    path.unlink()
    with pytest.raises(CheckpointError, match="no weights in this folder"):
        to(tmp_path / "theirs", tmp_path / "no", "native")


def test_an_artifact_is_compared_with_its_digests(tmp_path, model):
    stage = tmp_path / "stage"
    shutil.copytree(model, stage / "weights")
    described = artifact.Artifact(
        name="x", kind="train", key="k", run="r", created="", parents=[], summary={}, environment={},
        files=artifact.describe_files(stage, ("weights",)),
    )  # fmt: skip
    artifact.write_text(stage / artifact.NAME, described.model_dump_json())
    to(stage, tmp_path / "fine", "native")
    assert differences(stage, tmp_path / "fine") == []
    path = stage / "weights/connector/model.safetensors"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does it
    with pytest.raises(CheckpointError, match="content changed"):
        to(stage, tmp_path / "no", "native")


def test_a_rank_that_is_missing_or_of_a_pipeline_is_noticed(tmp_path, model):
    to(model, tmp_path / "two", "megatron", tp=2)
    (tmp_path / "two/vlmrun.json").unlink()
    ranks = tmp_path / "two/iter_0000001"
    (ranks / "mp_rank_00").rename(ranks / "mp_rank_02")
    with pytest.raises(CheckpointError, match="ranks 01, 02 are not 00 to 01"):
        to(tmp_path / "two", tmp_path / "no", "native")
    (ranks / "mp_rank_02").rename(ranks / "mp_rank_00_000")
    with pytest.raises(CheckpointError, match="pipeline"):
        to(tmp_path / "two", tmp_path / "no", "native")
