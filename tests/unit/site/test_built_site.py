"""The site: escaped whatever runs are called, incremental, and whole when files are damaged."""

import json
import re
import urllib.request

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.report.test_run_page import Page
from tests.unit.site.conftest import HOSTILE
from vlmrun.cli import site, watch
from vlmrun.errors import CheckpointError, LaunchError
from vlmrun.run import record
from vlmrun.site import build, curves, lineage, lines


def test_every_run_and_stage_has_a_page_also_one_that_failed(root, capsys):
    assert site.main(["--output", str(root)]) == 0
    place = root / "site"
    assert capsys.readouterr().out.strip().endswith("site/index.html")
    failed = (place / "runs/demo/2.html").read_text()
    assert "the &lt;disk&gt; is full" in failed
    assert {"runs/demo/1.html", "runs/demo/2.html"} <= {
        each["href"] for each in Page((place / "index.html").read_text()).all("a") if "href" in each
    }
    assert list((place / "stages").glob("first-*.html"))


def test_pages_are_well_formed_and_their_links_lead_somewhere(root):
    build.build(root)
    pages = list((root / "site").rglob("*.html"))
    assert len(pages) == 5
    for path in pages:
        page = Page(path.read_text())
        assert any("default-src 'none'" in (each.get("content") or "") for each in page.all("meta"))
        for each in [*page.all("a"), *page.all("script"), *page.all("link")]:
            address = each.get("href") or each.get("src") or ""
            if address and not address.startswith(("#", "data:")):
                target = path.parent / urllib.request.unquote(address.partition("#")[0])
                assert target.exists(), (path, address)


def test_data_cannot_end_its_script(root):
    build.build(root)
    script = (root / "site/runs/demo/2.js").read_text()
    assert "<" not in script
    assert data_of(script)["config"]["lr"] == HOSTILE
    assert "<script>alert" not in (root / "site/runs/demo/2.html").read_text()


def data_of(script):
    return json.loads(re.fullmatch(r'vlmrun\.add\("[^"]*", (.*)\);\n', script, re.DOTALL)[1])


def test_only_what_changed_is_written(root):
    first = build.build(root)
    assert (first.written > 5, first.kept) == (True, 0)
    again = build.build(root)
    assert (again.written, again.kept) == (0, first.written)
    record.change(root / "runs/demo/1", lambda one: one.tags.append("best"))
    changed = build.build(root)
    assert changed.written == 2, "the run and the list"
    assert "best" in (root / "site/index.html").read_text()


def test_pages_of_what_is_gone_are_removed(root):
    build.build(root)
    (root / "runs/demo/2/run.json").unlink()
    assert build.build(root).removed == 2
    assert not (root / "site/runs/demo/2.html").exists()


def test_a_forged_state_removes_nothing_outside(root):
    build.build(root)
    (root / "precious").write_text("kept")
    state = root / "site/.state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "pages": {"../precious": "0"}}))
    build.build(root)
    assert (root / "precious").read_text() == "kept"


def test_a_damaged_record_is_reported_and_left_out(root, capsys):
    (root / "runs/demo/1/run.json").write_text("{")
    site.main(["--output", str(root)])
    assert "cannot be read; the run is left out" in capsys.readouterr().err
    assert "cannot be read" in (root / "site/index.html").read_text()


def test_damaged_lines_are_counted(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"st\n[1]\n{"step": 2, "loss": NaN}\n{"step": 3, "lo'
    )
    found = curves.read(tmp_path)
    assert (found["n_rows"], found["n_damaged"], found["step"]) == (2, 2, [1, 2])
    assert found["columns"]["loss"] == [2.0, None]


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just({"llm": 1e-3}))
KEYS = st.sampled_from(["step", "loss", "lrs", "tokens", "seconds", "grad_norm"])


@given(st.lists(st.dictionaries(KEYS, VALUES), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
def test_any_rows_become_columns_of_one_length(tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = curves.read(tmp_path)
    assert {len(values) for values in found["columns"].values()} <= {len(found["step"])}
    json.dumps(found, allow_nan=False)
    assert found["step"] == sorted(found["step"])


def test_a_long_training_is_thinned_and_keeps_its_end(tmp_path):
    rows = ({"step": step, "loss": 1 / step} for step in range(1, 9002))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = curves.read(tmp_path)
    assert len(found["step"]) == len(found["columns"]["loss"]) <= 2000
    assert found["step"][-1] == 9001
    assert found["last"] == 1 / 9001


@given(st.text(max_size=20), st.text(max_size=20))
def test_texts_are_escaped_in_drawings(name, kind):
    stage = lineage.Stage(name, kind, "x.html", ["a", "gone"])
    Page(str(lineage.draw({"a": stage, "b": stage})))  # a loop as well


def test_numbers_that_json_does_not_have_become_text():
    assert lines.safe({"a": [float("nan"), 1.5, {"b": float("inf")}]}) == {"a": ["nan", 1.5, {"b": "inf"}]}
    assert lines.finite(10**400) is None


def test_one_number_has_one_text_on_a_stages_page(root):
    build.build(root)
    (path,) = (root / "site/stages").glob("first-*.html")
    assert path.read_text().count("0.5000") >= 3, "the facts, the label of the curve and the figure in it"


def test_watch_shows_a_run_once(root, capsys):
    assert watch.main(["demo/1", "--once", "--output", str(root)]) == 0
    said = capsys.readouterr().out
    assert "demo/1: finished" in said
    assert "0.5000" in said


def test_watch_ends_with_a_run_that_ended(root, capsys):
    assert watch.main(["demo/2", "--output", str(root)]) == 0
    out, err = capsys.readouterr()
    assert "the <disk> is full" in out
    assert "http://127.0.0.1:" in err


def test_nothing_to_watch(tmp_path):
    with pytest.raises(CheckpointError, match="no run to watch"):
        watch.main(["--output", str(tmp_path)])


def test_no_output_root(tmp_path):
    with pytest.raises(LaunchError, match="there is no folder"):
        site.main(["--output", str(tmp_path / "gone")])


def test_a_line_of_blocks():
    assert watch.spark([4.0, 3.0, None, 1.0]) == "█▆▁"
    assert watch.spark([1.0]) == ""
