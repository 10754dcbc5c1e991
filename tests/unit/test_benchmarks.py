"""Each benchmark's quick mode runs and prints all its rows; the figures themselves are nobody's promise."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def _quick(name: str, file: Path, *options: str) -> tuple[str, list[dict]]:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(file), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text("utf-8"))
    assert "cores" in done.stdout
    assert "torch" in found["machine"]["versions"]
    return done.stdout, found["rows"]


def test_startup(tmp_path):
    printed, rows = _quick("startup", tmp_path / "figures.json")
    commands = [row["command"] for row in rows]
    assert commands == [
        "python -c pass",
        "python -c 'import hydra'",
        "vlmrun --help",
        "vlmrun +recipe=smoke --cfg job",
        "vlmrun check +recipe=smoke",
        "vlmrun check +recipe=bunny_llama3_average",
        "vlmrun, all stages finished",
    ]
    assert all(command in printed for command in commands)
    assert all(row["median s"] > 0 and row["peak MiB"] > 0 for row in rows)
    assert [row["target"][:6].rstrip(" s:") for row in rows if row["target"]] == ["< 0.2", "< 0.7", "< 0.7", "< 2"]


def test_gpu(tmp_path):
    _, rows = _quick("gpu", tmp_path / "figures.json")
    assert [(row["model"], row["stage"]) for row in rows] == [("tiny", "pretrain"), ("tiny", "lora")]
    assert all(row["tokens/s"] > 0 for row in rows)


def test_tower_cache(tmp_path):
    from benchmarks.tower_cache import EMPTY, NEXT, WITHOUT

    printed, rows = _quick("tower_cache", tmp_path / "figures.json")
    assert [row["run"] for row in rows] == [WITHOUT, EMPTY, NEXT]
    assert "equal to the last bit" in printed


def test_overhead(tmp_path):
    from benchmarks.overhead import BARE, CONTENDERS

    printed, rows = _quick("overhead", tmp_path / "figures.json")
    assert [row["contender"] for row in rows] == list(CONTENDERS)
    assert all(label in printed for label in CONTENDERS)
    assert all(row["ms/step"] > 0 for row in rows)
    assert [row["contender"] for row in rows if row["overhead ms"] is None] == [BARE]


def test_accuracy(tmp_path):
    printed, rows = _quick("accuracy", tmp_path / "figures.json", "--seeds", "3")
    assert [(row["model"], row["seed"]) for row in rows] == [("pretrain", s) for s in ("3", "lowest", "mean")]
    assert all(0 <= row["seen"] <= 1 and 0 < row["chance"] <= 1 for row in rows)
    assert "(seed 3)" in printed


def test_index(tmp_path):
    _, rows = _quick("index", tmp_path / "figures.json")
    listed, made, opened = rows
    assert opened["private MB"] < listed["private MB"] / 20
    assert opened["resident MB"] < listed["resident MB"]
    assert made["seconds to first samples"] > 0


def test_peers_do_the_same_work(tmp_path):
    _, rows = _quick("peers", tmp_path / "figures.json")
    assert [row["contender"] for row in rows][:3] == ["vlmrun, plain engine", "vlmrun, ZeRO-2", "HF Trainer"]
    for name in ("loss, first", "loss, last"):
        assert [row[name] for row in rows] == pytest.approx([rows[0][name]] * len(rows), abs=2e-5)


def test_loss(tmp_path):
    printed, rows = _quick("loss", tmp_path / "figures.json")
    assert [(row["head"], row["way"][:7]) for row in rows] == [
        (head, way) for head in ("frozen", "trained") for way in ("full lo", "chunked")
    ]
    assert all(row["times smaller"] > 1 for row in rows if row["way"].startswith("chunked")), printed
    assert rows[1]["times smaller"] > 4, "the logits of a quarter of the positions, once, and no copies of them"


def test_packing(tmp_path):
    _, rows = _quick("packing", tmp_path / "figures.json")
    unused = {(row["way"], row["row"]): row["unused %"] for row in rows}
    assert len(unused) == 2 + 3 * 4
    assert unused["even_fit", "4096 tokens"] <= 3.0
    assert unused["even_fit", "8192 tokens"] <= 3.0
    assert unused["in_order", "4096 tokens"] < unused["padding, grouped", "micro batch of 16"]
    least = {row["row"]: row["at least"] for row in rows if row["way"] == "even_fit"}
    assert 3.0 < least["2048 tokens"] <= unused["best_fit", "2048 tokens"], "no packing could do with 3 %"
    assert least["4096 tokens"] <= unused["even_fit", "4096 tokens"]


def _optimum(lengths: list[int], rooms: list[int], length: int) -> int:
    """Rows of the best packing there is, by trying all."""
    if not lengths:
        return len(rooms)
    first, *others = lengths
    found = [_optimum(others, [*rooms, length - first], length)]
    for number, room in enumerate(rooms):
        if room >= first and room not in rooms[:number]:
            found.append(_optimum(others, [*rooms[:number], room - first, *rooms[number + 1 :]], length))
    return min(found)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7))
def test_no_packing_has_fewer_rows_than_the_fewest(lengths):
    from benchmarks.packing import fewest

    assert fewest(np.array(lengths), 12) <= _optimum(lengths, [], 12)


@pytest.mark.parametrize(("lengths", "rows"), [([7] * 5, 5), ([5] * 5, 3), ([4] * 6, 2), ([3, 3, 3, 3, 12], 2)])
def test_halves_and_thirds_of_a_row_are_counted(lengths, rows):
    """Of twelve: more than a half takes a row, more than a third half of one; what divides it, its share."""
    from benchmarks.packing import fewest

    assert fewest(np.array(lengths), 12) == rows


def test_merge(tmp_path):
    from benchmarks.merge import QUICK, QUICK_GB

    _, rows = _quick("merge", tmp_path / "figures.json")
    assert [row["contender"] for row in rows] == ["copy 1 model", "copy 2 models", *QUICK]
    for row in rows[2:]:
        assert row["seconds"] > 0
        assert row["of copying"] > 0
        # Not the models, nor a shard: what arithmetic on slices needs.
        assert row["anonymous MiB"] < 60 < QUICK_GB * 1e9 / 2**20 / 2, row


@pytest.mark.slow
def test_serving(tmp_path):
    printed, rows = _quick("serving", tmp_path / "figures.json")
    assert [row["clients"] for row in rows] == [1, 1, 2, 4, 8]
    assert all(row["tokens/s"] > 0 for row in rows)
    assert "transformers, one at a time" in printed


def test_questions(tmp_path):
    printed, rows = _quick("questions", tmp_path / "figures.json")
    assert len(rows) == 3
    assert len({row["equal answers of 16"] for row in rows}) == 1, printed


def test_lint(tmp_path):
    _, (row,) = _quick("lint", tmp_path / "figures.json")
    assert row["records"] == 2000
    assert row["records/s"] > 0


def test_plan_error(tmp_path):
    _, rows = _quick("plan_error", tmp_path / "figures.json")
    assert [row["cases"] for row in rows] == [2, 2, 2, 2]
    assert all(abs(row["max"]) < 50 for row in rows), rows


def test_every_benchmark_has_a_quick_form_that_is_run():
    folder = Path(__file__).parents[2] / "benchmarks"
    with_main = {path.stem for path in folder.glob("*.py") if "\nif __name__ ==" in path.read_text("utf-8")}
    run = set(re.findall(r'_quick\("(\w+)"', Path(__file__).read_text("utf-8")))
    assert with_main
    assert run == with_main


def test_score(tmp_path):
    _, rows = _quick("score", tmp_path / "figures.json")
    assert len({row["metric"] for row in rows}) == len(rows) > 3
    assert all(row["cpu s"] > 0 for row in rows)


def test_site(tmp_path):
    _, rows = _quick("site", tmp_path / "figures.json")
    assert [row["command"] for row in rows] == [
        "vlmrun runs",
        "vlmrun site, first build",
        "vlmrun site, nothing changed",
        "vlmrun site, one more run",
    ]
    assert all(row["seconds"] > 0 for row in rows)
