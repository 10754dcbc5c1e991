import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.data import index
from vlmrun.data.reading import usable
from vlmrun.data.records import open_datasets
from vlmrun.data.sample import Sample, Turn

texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.just("\ud800 alone")
samples = st.lists(
    st.builds(
        Sample,
        id=texts,
        images=st.lists(texts, max_size=3).map(tuple),
        turns=st.lists(st.builds(Turn, role=st.sampled_from(["user", "assistant", "unknown"]), text=texts)).map(tuple),
        source=st.tuples(st.just("file"), st.integers(0, 10**9)),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(st.lists(samples, max_size=4))
def test_what_is_written_is_read(sources):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        named = [(f"s{number}", "file", found) for number, found in enumerate(sources)]
        written = index.write(Path(folder), named)
        for made in (written, pickle.loads(pickle.dumps(written))):
            assert list(made) == [sample for found in sources for sample in found]
            assert made.counts == [len(found) for found in sources if found]
            assert made.names == [name for name, _, found in named if found]
            owners = [name for name, _, found in named for _ in found]
            assert [made.names[made.source(i)] for i in range(len(made))] == owners


def test_positions_outside_are_refused_and_negative_ones_count_from_the_end(tmp_path):
    made = index.write(tmp_path, [("s", "f", [Sample(str(i), (), (Turn("user", "a b"),), ("f", i)) for i in range(3)])])
    assert [made[-1].id, made[-3].id] == ["2", "0"]
    assert made.words.tolist() == [-2, -2, -2]
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            made[wrong]


def test_many_records_fill_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(index._Column, "_BLOCK", 4)
    made = index.write(tmp_path, [("s", "f", (Sample(str(i), (), (), ("f", i)) for i in range(11)))])
    assert [sample.id for sample in made] == [str(i) for i in range(11)]


def opened(config, encoder, folder, skipped=None):
    return open_datasets({"d": config}, ["d"], encoder=encoder, skipped=skipped, folder=folder)


def test_an_index_is_used_again_until_something_changes(write_data, encoder, tmp_path, monkeypatch):
    config, folder = write_data(), tmp_path / "index"
    first = opened(config, encoder, folder)
    with monkeypatch.context() as closed:
        closed.setattr("vlmrun.data.records.usable", lambda *args, **kwargs: pytest.fail("the files were read again"))
        assert [opened(config, encoder, folder).sample(i) for i in range(10)] == [first.sample(i) for i in range(10)]
    records = json.loads(Path(config.annotations).read_text())
    Path(config.annotations).write_text(json.dumps(records[:7]))
    assert len(opened(config, encoder, folder)) == 7
    assert len(opened(config.model_copy(update={"on_error": "skip"}), encoder, folder)) == 7


@pytest.mark.parametrize(
    ("first", "counts"), [(3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1]), (99, [4, 4, 4])]
)
def test_the_first_records_are_those_of_all_sources_together(write_data, encoder, tmp_path, monkeypatch, first, counts):
    read = []

    def counted(*args, **kwargs):
        for sample in usable(*args, **kwargs):
            read.append(sample.id)
            yield sample

    monkeypatch.setattr("vlmrun.data.records.usable", counted)
    config = write_data()
    records = json.loads(Path(config.annotations).read_text())
    data = {}
    for name in "abc":
        file = Path(config.annotations).with_name(f"{name}.json")
        file.write_text(json.dumps(records[:4]))
        data[name] = config.model_copy(update={"annotations": str(file)})
    folder = tmp_path / "index"
    open_datasets(data, list(data), encoder=encoder, skipped=None, folder=folder, first=first)
    assert index.Index(folder).counts == counts
    assert len(read) == sum(counts), "no record is read that is not taken"


def test_a_refused_file_leaves_no_index(write_data, encoder, tmp_path):
    from vlmrun.errors import DataError

    config, folder = write_data(), tmp_path / "index"
    opened(config, encoder, folder)
    (Path(config.images) / "4.png").unlink()
    Path(config.annotations).touch()
    with pytest.raises(DataError, match=r"4\.png"):
        opened(config, encoder, folder)
    assert not (folder / index.INDEX).exists()
    assert not list(folder.glob(".*"))
