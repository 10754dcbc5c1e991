"""Folders of runs and sweeps are claimed: another configuration never replaces an earlier one of its name."""

from concurrent.futures import ThreadPoolExecutor

from vlmrun import locks
from vlmrun.run import numbers


def test_the_same_configuration_is_the_same_run_and_another_is_the_next_number(tmp_path):
    base = tmp_path / "runs" / "a"
    first, again, other, back = (numbers.claim(base, text) for text in ("x", "x", "y", "x"))
    assert (first, again, other, back) == (base / "1", base / "1", base / "2", base / "1")
    assert [(base / n / "config.yaml").read_text() for n in "12"] == ["x", "y"]


def test_links_lead_to_the_run_that_was_asked_for_last(tmp_path):
    for text in ("x", "y"):
        folder = numbers.claim(tmp_path / "a", text)
        (folder / "report.html").write_text(text)
        assert numbers.report(folder) == tmp_path / "a" / "report.html"
        assert (tmp_path / "a" / "report.html").read_text() == (tmp_path / "a" / "config.yaml").read_text() == text
    assert numbers.report(tmp_path / "a" / "1") == tmp_path / "a" / "1" / "report.html"


def test_a_folder_of_an_earlier_version_is_kept(tmp_path):
    base = tmp_path / "a"
    (base / "stages").mkdir(parents=True)
    for name in ("config.yaml", "report.html"):
        (base / name).write_text("old")
    assert numbers.claim(base, "old") == base
    assert numbers.report(base) == base / "report.html"
    new = numbers.claim(base, "new")
    assert new == base / "2"
    assert numbers.report(new) == new / "report.html"
    assert (base / "report.html").read_text() == (base / "config.yaml").read_text() == "old"


def test_many_at_once_have_a_folder_each(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda n: numbers.claim(tmp_path / "a", str(n)), range(16)))
        sweeps = list(pool.map(lambda _: locks.claim(tmp_path / "sweeps", "now"), range(16)))
    assert len(set(runs)) == len(set(sweeps)) == 16
    assert all((folder / "config.yaml").read_text() == str(n) for n, folder in enumerate(runs))
