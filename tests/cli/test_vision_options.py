"""Every connector option composes and passes the check; a run with tiles and a dense connector goes all the way."""

import pytest

from tests.conftest import ROOT, TINY
from vlmrun.checks.rules import check
from vlmrun.config.compose import compose
from vlmrun.config.validate import validate

OPTIONS = sorted(path.stem for path in (ROOT / "conf/model/connector").glob("*.yaml") if path.stem != "identity")
NEEDED = {
    "abstractor": ["model.max_length=256"],
    "dense_sti": ["model.connector.shallow=[0,1]"],
    "dense_sci": ["model.connector.shallow=[0,1]"],
}


def _problems(*changes):
    composed = compose(["+recipe=smoke", *changes])
    run, problems = validate(composed.tree, composed.problems)
    return [*composed.problems, *problems, *(check(run) if run is not None else [])]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_connector_composes(option):
    assert _problems(f"model/connector={option}", *NEEDED.get(option, [])) == []


@pytest.mark.slow
def test_tiles_and_a_dense_connector_go_all_the_way(vlmrun, tmp_path):
    changed = [
        "model/connector=dense_dci",
        "model.max_length=512",
        "model.tiles={grids: [[32, 64], [64, 32], [64, 64]], merge: spatial_unpad}",
        "stage.pretrain.image_aspect=anyres",
        "stage.instruct.image_aspect=pad",
        "only=[pretrain,eval_pretrain]",
    ]
    done = vlmrun(*TINY, *changed)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("outputs/stages/eval_pretrain-*/scores.json"))


REFUSED = {
    "anyres without tiles": (["stage.pretrain.image_aspect=anyres"], "model.tiles does not say"),
    "grid": (["model.tiles={grids: [[32, 65]], merge: flat}"], "no multiple of the tower's"),
    "too many tokens": (
        ["model.tiles={grids: [[320, 320]], merge: spatial}", "stage.pretrain.image_aspect=anyres"],
        "an image takes up to",
    ),
    "layers of a dense connector": (["model/connector=dense_dci", "model.tower.layers=[-2]"], "chooses the tower's"),
    "layers of another": (["model.tower.layers=null"], "the connector asks for none"),
    "no weights there": (["model.connector.weights=/nowhere.bin"], "no file '/nowhere.bin'"),
    "a map that is none": (["model/connector=ldp", "model/tower=pico_clip", "model.tower.feature=cls_patch"], "square"),
    "identity": (["model/connector=identity"], "without a connector"),
    "identity trained": (["model/connector=identity"], "nothing to train"),
    "shallow": (["model/connector=dense_sci", "model.connector.shallow=[99]"], "layer 99 does not exist"),
}


@pytest.mark.parametrize(("changes", "told"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_without_weights(changes, told):
    problems = _problems(*changes)
    assert any(told in problem.what for problem in problems), problems
