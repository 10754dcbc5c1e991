"""Shards, energon's files and its order of samples against the recorded ones."""

import io
import itertools
import json
import shutil
import sqlite3
import struct
import tarfile
from functools import lru_cache
from hashlib import sha256

import pytest

from tests.parity.golden import CASES, cases, need
from vlmrun.data.formats import energon, wds
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.images.loading import open_image
from vlmrun.data.prepare import unpack_shards as unpack
from vlmrun.data.prepare import write_shards as write
from vlmrun.data.sample import IMAGE_TAG, Rejected
from vlmrun.data.shards import metadata, names
from vlmrun.data.shards.order import Loading, rank_batches
from vlmrun.data.shards.schedule import EnergonSchedule
from vlmrun.errors import DataError

SET = "g9_megatron_data"
DATASETS = sorted(path.name for path in (CASES / SET / "datasets").glob("*") if path.is_dir())
VERSIONS = (4, 7)


@lru_cache
def described(dataset):
    """The recorded index, and the samples of every shard, of a data set."""
    index = cases(f"{SET}/datasets/{dataset}/index.json")
    info = json.loads(need(CASES / SET / "datasets" / dataset / "nv-meta_en7" / "info.json").read_text("utf-8"))
    return index, info


def folder_of(dataset, version, tmp_path):
    """A recorded data set as energon lays it out."""
    source = CASES / SET / "datasets" / dataset
    folder = tmp_path / f"{dataset}-{version}"
    shutil.copytree(source / "wds", folder, copy_function=shutil.copyfile)
    (folder / metadata.FOLDER).mkdir()
    for file in (source / f"nv-meta_en{version}").iterdir():
        name = f".{file.name}" if file.stem == "info" else file.name
        shutil.copyfile(file, folder / metadata.FOLDER / name)
    return folder


def line_of(dataset, part, version, tmp_path):
    """Counts of a part's shards, and the key of every sample in their line."""
    folder = folder_of(dataset, version, tmp_path)
    shards, counts = metadata.split(folder, part), metadata.counts(folder)
    rows = described(dataset)[0]["index_sqlite"]["samples"]["rows"]
    numbered = {shard: number for number, shard in enumerate(metadata.shards_in(folder))}
    keys = []
    for shard in shards:
        of_shard = sorted((row[2], row[1]) for row in rows if row[0] == numbered[shard])
        keys += [f"{shard}/{key}" if version == 4 else key for _, key in of_shard]
    return [counts[shard] for shard in shards], keys


def loading_of(config, version):
    return Loading(
        f"energon{version}",
        ranks=config["world_size"],
        workers=config["num_workers"],
        micro_batch=config["batch_size"],
        slice_samples=config["max_samples_per_sequence"],
        open_slices=config["parallel_shard_iters"] or 16,
        buffer=config["shuffle_buffer_size"],
        passes=config["shuffle_over_epochs_multiplier"],
        seed_offset=config["seed_offset"],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recorded_order(version, tmp_path):
    lines, compared = {}, 0
    for case in cases(f"{SET}/order_energon{version}.jsonl.gz"):
        config, dataset = case["config"], case["dataset"]
        if case["error"] is not None or "shuffle_buffer_size" not in config:
            continue  # held-out data are read once, in their own order, and an empty part is refused elsewhere
        if (dataset, case["split"]) not in lines:
            lines[dataset, case["split"]] = line_of(dataset, case["split"], version, tmp_path / case["split"])
        counts, keys = lines[dataset, case["split"]]
        asked = loading_of(config, version)
        if "saved_after" in case:
            recorded = {case["rank"]: case["uninterrupted"]}
            rest = itertools.islice(rank_batches(counts, asked, case["rank"]), case["saved_after"], None)
            again = [[keys[place] for place in next(rest)] for _ in case["after_restore"]]
            assert again == case["after_restore"], case["id"]
        else:
            recorded = dict(enumerate(case["batches_per_rank"]))
        for rank, batches in recorded.items():
            found = itertools.islice(rank_batches(counts, asked, rank), len(batches))
            assert [[keys[place] for place in batch] for batch in found] == batches, case["id"]
        compared += 1
    assert compared


@pytest.mark.parametrize("version", VERSIONS)
def test_training_reads_the_recorded_batches_on_any_ranks_and_resumes(version, tmp_path):
    """As many ranks as there: each reads its own. Other ranks: the same global batches. A later start: the rest."""
    compared = 0
    for case in cases(f"{SET}/order_energon{version}.jsonl.gz"):
        config = case["config"]
        if case["error"] or "batches_per_rank" not in case or config.get("shuffle_over_epochs_multiplier") != 1:
            continue
        asked = loading_of(config, version)
        per_rank = case["batches_per_rank"]
        steps, ranks, size = len(per_rank[0]) // 2, asked.ranks, asked.micro_batch
        counts, keys = line_of(case["dataset"], case["split"], version, tmp_path / str(compared))

        def schedule(n_ranks, micro, counts=counts, asked=asked, steps=steps, batch=2 * ranks * size):
            cut = {"global_batch": batch, "micro_batch": micro, "ranks": n_ranks}
            return EnergonSchedule(counts, range(sum(counts)), asked, epochs=None, max_steps=steps, seed=0, **cut)

        alike = schedule(ranks, size)
        for rank in range(ranks):
            read = [batch for step in range(steps) for batch in alike.micro_batches(step, rank)]
            assert [[keys[place] for place in batch] for batch in read] == per_rank[rank][: 2 * steps], case["id"]
        alone = schedule(1, 1)
        assert sorted(alone.indices(steps - 1)) == sorted(alike.indices(steps - 1))
        assert schedule(ranks, size).indices(steps - 1) == alike.indices(steps - 1)
        compared += 1
        if compared == 12:  # every shape has been there by then
            break
    assert compared


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("version", VERSIONS)
def test_metadata_are_what_prepare_writes(dataset, version, tmp_path):
    source = CASES / SET / "datasets" / dataset
    folder = tmp_path / dataset
    shutil.copytree(source / "wds", folder, copy_function=shutil.copyfile)
    recorded = {path.name: path.read_bytes() for path in (source / f"nv-meta_en{version}").iterdir()}
    index, info = described(dataset)
    wanted = _shares(folder_of(dataset, 4, tmp_path), len(info["shard_counts"]))
    metadata.write(folder, version, wanted, written_by=info["energon_version"])
    for name, content in recorded.items():
        ours = folder / metadata.FOLDER / (f".{name}" if name.startswith("info") else name)
        assert ours.read_bytes() == content, name
    for name, numbers in index["tar_idx_uint64"].items():
        packed = (folder / name).read_bytes()
        assert list(struct.unpack(f"<{len(packed) // 8}Q", packed)) == numbers
    if version == 7:
        with sqlite3.connect(folder / metadata.FOLDER / "index.sqlite") as database:
            for table, values in index["index_sqlite"].items():
                rows = database.execute(f"SELECT {', '.join(values['columns'])} FROM {table}")
                assert sorted(map(list, rows)) == sorted(values["rows"])


def _shares(folder, n_shards):
    """Shares that lead to the recorded split: how many shards each part has."""
    found = []
    for part in metadata.PARTS:
        try:
            found.append(len(metadata.split(folder, part)))
        except DataError:
            found.append(0)
    assert sum(found) == n_shards
    return found


@pytest.mark.parametrize("dataset", DATASETS)
def test_shards_are_the_scripts_but_for_the_time_of_writing(dataset, tmp_path):
    source = CASES / SET / "datasets" / dataset
    most = max(described(dataset)[1]["shard_counts"].values())
    for name, writers in (("one", 1), ("several", 3)):
        written = write.write(source, tmp_path / name, write.Layout(max_count=most, writers=writers))
        assert written.n_skipped == 0
    for shard in sorted((source / "wds").glob("*.tar")):
        ours = tmp_path / "one" / shard.name
        assert ours.read_bytes() == (tmp_path / "several" / shard.name).read_bytes()
        assert _members(ours) == _members(shard)
    assert len(list((tmp_path / "one").glob("*.tar"))) == len(list((source / "wds").glob("*.tar")))


def _members(path):
    with tarfile.open(path) as archive:
        return [
            (m.name, m.size, m.mode, m.uid, m.gid, m.uname, m.gname, m.type, archive.extractfile(m).read())
            for m in archive.getmembers()
        ]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("version", VERSIONS)
def test_samples_are_what_the_loader_decodes(dataset, version, tmp_path):
    folder = folder_of(dataset, version, tmp_path)
    by_part = {}
    for case in cases(f"{SET}/datasets/{dataset}/contents.jsonl.gz"):
        if "error" not in case:
            by_part.setdefault(case["split"], []).append(case)
    for part, recorded in by_part.items():
        found = {sample.id: sample for sample in energon.read(folder, split=part)}
        assert list(found) == [case["key"] for case in recorded]
        for case in recorded:
            question, answer = found[case["key"]].turns
            tag = "" if IMAGE_TAG in case["context"] else IMAGE_TAG
            assert (question.text, answer.text) == (tag + case["context"], case["answers"])
            picture = open_image(ImageFolder(folder), found[case["key"]].images[0])
            assert list(picture.size) == case["size"]
            assert sha256(picture.tobytes()).hexdigest() == case["rgb_sha256"]
    everything = [sample.id for sample in wds.read(folder)]
    assert sorted(everything) == sorted(case["key"] for cases_ in by_part.values() for case in cases_)


@pytest.mark.parametrize("dataset", DATASETS)
def test_records_come_back_from_shards(dataset, tmp_path):
    source = CASES / SET / "datasets" / dataset
    records = json.loads((source / write.SOURCE_NAME).read_text("utf-8"))
    assert unpack.unpack(source / "wds", tmp_path / "back") == len(records)
    found = {record["id"]: record for record in json.loads((tmp_path / "back" / unpack.RECORDS).read_text("utf-8"))}
    for record in records:
        ours = found.pop(record["id"])
        assert ours["conversations"] == record["conversations"]
        assert (tmp_path / "back" / ours["image"]).read_bytes() == (source / record["image"]).read_bytes()
    assert not found


def test_an_empty_part_of_a_split_is_refused(tmp_path):
    refused = 0
    for version in VERSIONS:
        for case in cases(f"{SET}/order_energon{version}.jsonl.gz"):
            if case["error"] is None:
                continue
            folder = tmp_path / f"{case['dataset']}-{version}"
            if not folder.exists():
                folder_of(case["dataset"], version, tmp_path)
            with pytest.raises(DataError, match="no shard"):
                metadata.split(folder, case["split"])
            refused += 1
    assert refused


@pytest.mark.parametrize("version", VERSIONS)
def test_runs_of_names_are_read_as_written(version, tmp_path):
    for dataset in DATASETS:
        listed = metadata.shards_in(folder_of(dataset, version, tmp_path))
        assert [name for run in names.collapse(listed) for name in names.expand(run)] == listed


def test_odd_samples_are_read_as_upstream_reads_them_or_rejected(tmp_path):
    """Nothing that upstream reads is lost without a word, and nothing is read that upstream loses."""
    looked = 0
    for case in cases(f"{SET}/odd_records.json"):
        folder = tmp_path / case["id"]
        folder.mkdir()
        with tarfile.open(folder / "pretrain-0.tar", "w") as archive:
            for member in case["members"]:
                _add(archive, member, case)
        found = list(wds.read(folder))
        rejected = [sample.id for sample in found if isinstance(sample, Rejected)]
        accepted = {sample.id for sample in found if not isinstance(sample, Rejected)}
        theirs = {row[0] for row in case.get("read") or []}
        if case["prepare_rc"] == 0:
            assert accepted <= theirs <= accepted | set(rejected), case["id"]
        else:
            assert rejected or not found, case["id"]
        looked += 1
    assert looked


def _add(archive, name, case):
    content = b"no image" if name.endswith(".jpg") else json.dumps(_turns(name, case)).encode()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _turns(name, case):
    read = {row[0]: row for row in case.get("read") or []}
    key = name.rpartition(".")[0]
    question, answer = read[key][-2:] if key in read else ("What?", None)
    turns = [{"from": "human", "value": question}]
    return turns if answer is None else [*turns, {"from": "gpt", "value": answer}]
