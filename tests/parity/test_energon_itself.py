"""What we write and how we order it, against megatron-energon itself (tests/oracles.py)."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests import oracles
from vlmrun.data.prepare.write_shards import Layout, write
from vlmrun.data.shards import metadata
from vlmrun.data.shards.order import Loading, rank_batches

with oracles.importable():
    energon = pytest.importorskip("megatron.energon", reason="megatron-energon is not in .venv/oracles")


@pytest.fixture(autouse=True)
def _importable():
    """The loader imports more when it is used."""
    with oracles.importable():
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("energon")
    (folder / "images").mkdir()
    records = []
    for number in range(37):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / "images" / f"{number}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"box {number}"}]
        records.append({"id": f"{number:03}", "image": f"images/{number}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records), "utf-8")
    write(folder / "data.json", folder / "wds", Layout(max_count=3))
    return folder / "wds"


def test_prepare_writes_the_same_files(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "theirs")
    shutil.copytree(shards, tmp_path / "ours")
    words = ["prepare", "--non-interactive", "--split-ratio", "9,1,0", "--sample-type", "VQASample", "--field-map",
             json.dumps(metadata.FIELD_MAP), str(tmp_path / "theirs")]  # fmt: skip
    entry = "from megatron.energon.cli.main import main; main()"
    place = os.environ | {"PYTHONPATH": str(oracles.FOLDER)}
    subprocess.run([sys.executable, "-c", entry, *words], check=True, timeout=120, stdin=subprocess.DEVNULL, env=place)
    metadata.write(tmp_path / "ours", 7, [9, 1, 0])
    theirs = tmp_path / "theirs" / metadata.FOLDER
    assert json.loads((theirs / ".info.json").read_text())["shard_counts"] == metadata.counts(tmp_path / "ours")
    for name in ("split.yaml", "dataset.yaml"):
        assert (tmp_path / "ours" / metadata.FOLDER / name).read_bytes() == (theirs / name).read_bytes()
    for index in (tmp_path / "theirs").glob("*.idx"):
        assert (tmp_path / "ours" / index.name).read_bytes() == index.read_bytes()


@pytest.mark.filterwarnings("ignore:.*pin_memory")  # its loader asks for it without looking for a GPU
@pytest.mark.parametrize("rank", [0, 1])
def test_its_loader_gives_our_order(rank, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "wds")
    parts = metadata.write(tmp_path / "wds", 7, [9, 1, 0])
    config = energon.WorkerConfig(rank=rank, world_size=2, num_workers=0)
    dataset = energon.get_train_dataset(
        str(tmp_path / "wds"), worker_config=config, batch_size=2, shuffle_buffer_size=6, max_samples_per_sequence=5
    )
    loader = iter(energon.get_loader(dataset))
    read = [list(next(loader).__key__) for _ in range(30)]
    counts = metadata.counts(tmp_path / "wds")
    line = [f"{number:03}" for shard in parts["train"] for number in _of(shard)]
    asked = Loading("energon7", ranks=2, workers=0, micro_batch=2, slice_samples=5, buffer=6)
    ours = itertools.islice(rank_batches([counts[shard] for shard in parts["train"]], asked, rank), 30)
    assert [[line[place] for place in batch] for batch in ours] == read


def _of(shard):
    first = 3 * int(shard.removeprefix("pretrain-").removesuffix(".tar"))
    return range(first, min(first + 3, 37))
