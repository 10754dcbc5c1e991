"""Faults beside the site: a folder of somebody else, a state that lies, stages that vanish, pages that fail."""

import json

import pytest

from tests.unit.site.conftest import run
from vlmrun.cli import site
from vlmrun.errors import LaunchError
from vlmrun.site import build, links, pages, stage_page
from vlmrun.site import found as finding


@pytest.mark.parametrize("how", ["absolute", "above", "through a link", "no name"])
def test_a_state_removes_nothing_that_is_not_below_the_site(root, tmp_path_factory, how):
    build.build(root)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    precious = elsewhere / "precious"
    precious.write_text("kept")
    (root / "site/link").symlink_to(elsewhere)
    above = "../" * len((root / "site").parts) + str(precious).lstrip("/")
    name = {"absolute": str(precious), "above": above, "through a link": "link/precious", "no name": "\0"}[how]
    state = root / "site/.state.json"
    for values in ({"pages": {name: "0"}}, {**json.loads(state.read_text()), "pages": {name: "0"}}):
        state.write_text(json.dumps(values))
        assert build.build(root).removed == 0
    assert precious.read_text() == "kept"


def test_a_folder_of_somebody_else_is_left_alone(root, capsys):
    (root / "site").mkdir()
    (root / "site/index.html").write_text("of mkdocs")
    with pytest.raises(LaunchError, match="not a site that vlmrun wrote") as caught:
        site.main(["--output", str(root)])
    assert "output=FOLDER" in caught.value.problems[0].fix
    assert [path.name for path in (root / "site").iterdir()] == ["index.html"]
    assert (root / "site/index.html").read_text() == "of mkdocs"


def test_a_first_build_that_was_ended_early_is_gone_on_with(root, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(pages, "compare", stop)
        with pytest.raises(KeyboardInterrupt):
            build.build(root)
    assert (root / "site/runs/demo/1.html").is_file()
    (root / "site/..state.json.77").write_text("half")
    assert build.build(root).written > 5


@pytest.mark.parametrize("error", [RuntimeError("odd"), RecursionError("deep"), OSError("gone"), AssertionError()])
def test_one_page_that_fails_is_reported_and_tried_again(root, monkeypatch, capsys, error):
    def fail(*given):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(stage_page, "make", fail)
        assert site.main(["--output", str(root)]) == 0
    name = f"cannot be shown: {type(error).__name__}"
    assert f".html {name}" in capsys.readouterr().err
    (page,) = (root / "site/stages").glob("*.html")
    assert name in page.read_text()
    assert name in (root / "site/index.html").read_text()
    assert "demo/1" in (root / "site/runs/demo/1.html").read_text()
    assert build.build(root).problems == []
    assert name not in page.read_text()


def begun(root, name):
    folder = root / "stages" / f"{name}-0000000000"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"run": "demo", "name": name, "stage": {"kind": "train"}}))
    return folder


def test_a_stage_that_vanishes_meanwhile_is_absent(root, monkeypatch):
    folder = begun(root, "second")
    find = finding._find_stages

    def and_lose(found):
        find(found)
        (folder / "job.json").unlink()
        folder.rmdir()

    monkeypatch.setattr(finding, "_find_stages", and_lose)
    built = build.build(root)
    assert built.problems == []
    assert (root / "site/runs/demo/2.html").is_file()
    assert not list((root / "site/stages").glob("second-*"))


def test_one_run_that_fails_is_reported_and_left_out(root, monkeypatch):
    stages = finding._stages

    def fail(found, folder, one):
        if one.number == 2:
            raise RuntimeError("odd")
        return stages(found, folder, one)

    monkeypatch.setattr(finding, "_stages", fail)
    assert ["left out: RuntimeError: odd" in each for each in build.build(root).problems] == [True]
    assert "demo/1" in (root / "site/index.html").read_text()


@pytest.mark.parametrize("rows", [{"demo/1": 7}, {"demo/1": {}}, {"demo/1": {"stamp": None}}])
def test_rows_that_are_remembered_wrong_are_read_again(root, rows):
    build.build(root)
    state = root / "site/.state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "rows": rows}))
    assert build.build(root).problems == []


def test_a_running_page_looks_for_its_own_data_by_the_name_that_scripts_have(tmp_path):
    run(tmp_path, "of a name", 1)
    build.build(tmp_path)
    page = links.run("runs/of a name/1")
    text = (tmp_path / "site" / page).read_text()
    assert f'data-own="{links.data_id(page)}"' in text
    assert (tmp_path / "site" / links.data(page)).read_text().startswith(f'vlmrun.add("{links.data_id(page)}"')
    assert "data-own" not in (tmp_path / "site/compare.html").read_text()
