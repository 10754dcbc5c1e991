"""Signs that a model did not learn: each is found where it is, and not where it is not."""

from __future__ import annotations

import dataclasses
import gzip
import json

import pytest

from vlmrun import graph
from vlmrun.checks import rates
from vlmrun.cli import doctor as verb
from vlmrun.doctor import evidence
from vlmrun.doctor.evidence import Case, Evaluation, Training
from vlmrun.doctor.rules import RULES, diagnose, messages
from vlmrun.run import identity, pipeline, record

GOOD = [4.0 * 0.97**n for n in range(300)]  # falls to near zero


def rows(losses, **values):
    return [
        {"step": n, "epoch": n / 100, "loss": loss, "grad_norm": 1.0, "supervised_tokens": 40, "samples": 8} | values
        for n, loss in enumerate(losses, 1)
    ]


@pytest.fixture
def trained(job):
    """A training with these rows, of the smoke recipe's instruct stage."""

    def make(losses, held_out=(), overrides=(), **values):
        made = job("instruct", *overrides)
        return Training("instruct", made, made.stage, {"samples": 800, "skipped": 0}, rows(losses, **values), held_out)

    return make


def answers(n_right, n=40, wrong="blue", **more):
    given = [
        {"question_id": str(n), "data": "d", "image": f"{n}.png", "expected": ("red", "green")[n % 2], "answer": wrong}
        for n in range(n)
    ]
    return [row | more | ({"answer": row["expected"]} if at < n_right else {}) for at, row in enumerate(given)]


@pytest.fixture
def asked(job):
    made = job("eval_instruct")

    def make(found, chance=0.5, shuffled=(), model=None, **stage):
        asking = made.stage.model_copy(update=stage)
        return Evaluation("eval_instruct", made, asking, found, chance, shuffled, model or {})

    return make


def found(case):
    told = diagnose(case)
    return {name for name, _ in told.symptoms} | {name for name, _ in told.causes}


def test_a_model_that_learned_has_nothing_wrong(trained, asked):
    case = Case((trained(GOOD),), (asked(answers(40), shuffled=answers(18)),))
    assert found(case) == set()
    assert messages(case) == []


@pytest.mark.parametrize(
    ("name", "losses", "values"),
    [
        ("flat-loss", [2.0] * 300, {}),
        ("rising-loss", [*GOOD, *[3.0] * 100], {}),
        ("falling-loss", [4.0 - 0.01 * n for n in range(300)], {}),
        ("few-updates", [2.0, 1.5, 1.2], {}),
        ("gradients", GOOD, {"grad_norm": 0}),
        ("gradients", GOOD, {"overflow": True}),
        ("few-supervised", GOOD, {"supervised_tokens": 1}),
    ],
)
def test_signs_of_a_training(trained, name, losses, values):
    assert found(Case((trained(losses, **values),), ())) == {name}


def test_a_rate_far_from_the_presets(trained):
    one = trained(GOOD, overrides=("stage.instruct.optim.lr=2e-5",))
    (_, cause), *_ = diagnose(Case((one,), ())).causes
    assert "100 times below" in cause.what
    assert "micro_instruct" in cause.fix


def test_records_that_were_lost_and_data_known_by_heart(trained):
    lost = dataclasses.replace(trained(GOOD), summary={"samples": 100, "skipped": 20})
    assert found(Case((lost,), ())) == {"lost-records"}
    held_out = [{"step": n, "loss": loss} for n, loss in ((50, 0.5), (100, 0.4), (300, 0.9))]
    assert found(Case((dataclasses.replace(lost, summary={}, held_out=held_out),), ())) == {"by-heart"}


def test_records_that_were_cut_off(trained):
    one = trained(GOOD)
    with gzip.open(one.job.path / "ledger.jsonl.gz", "wt") as file:
        for number in range(10):
            file.write(json.dumps({"used": 1, "truncated": number < 2}) + "\n")
        file.write(json.dumps({"used": 0, "truncated": True}) + "\n")
    assert one.cut == (2, 10)
    assert found(Case((one,), ())) == {"cut-records"}


def test_signs_of_answers(trained, asked):
    plain = {"template": {"name": "plain"}, "image_aspect": "square"}
    right = answers(40)
    assert found(Case((), (asked(answers(20), chance=0.5),))) == {"chance"}
    assert found(Case((), (asked(right, shuffled=right, chance=0.5),))) == {"blind"}
    assert found(Case((), (asked(right, model=plain, template="vicuna_v1"),))) == {"template"}
    assert found(Case((), (asked(right, model=plain, image_aspect="pad"),))) == {"template"}
    assert found(Case((), (asked(answers(0), model=plain),))) == {"chance", "template", "alike"}
    assert found(Case((), (asked(answers(40, cut=True)),))) == {"endless"}
    assert found(Case((), (asked(answers(0, wrong="it is red or green"), chance=0.5),))) == {
        "chance",
        "alike",
        "inside",
    }
    assert found(Case((trained([0.01] * 300),), (asked(answers(20)),))) == {"chance", "elsewhere"}


def test_an_error_is_the_first_symptom():
    case = Case((), (), "stage 'a': the loss is not finite\nmore")
    assert [name for name, _ in diagnose(case).symptoms] == ["error"]
    assert messages(case) == []  # it has just been printed


def test_the_end_of_a_run_is_silent_about_models_that_are_trained_further(trained, asked):
    first = trained(GOOD)
    later = dataclasses.replace(first, name="lora", stage=first.stage.model_copy(update={"init_from": "instruct"}))
    case = Case((first, later), (asked(answers(0)),))
    assert "chance" in found(case)
    assert messages(case) == []


def test_names_of_rules_are_those_of_the_guide():
    from tests.conftest import ROOT

    guide = (ROOT / verb.GUIDE).read_text("utf-8")
    assert [rule.name for rule in RULES if f"`{rule.name}`" not in guide] == []
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_published_recipes_and_presets_have_usual_rates(smoke):
    assert rates.warnings(smoke()) == []
    (said,) = rates.warnings(smoke("stage.lora.optim.lr=50"))
    assert "stage.lora: learning rate 50 is 50,000 times above" in said
    assert rates.warnings(smoke("stage.lora.optim.lr=50", "only=[pretrain]")) == []


def test_the_verb_reads_stage_folders(job, tmp_path, capsys, monkeypatch):
    made = job("instruct", "stage.instruct.optim.lr=1e-6")
    (made.path / "job.json").write_text(made.to_json())
    (made.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows([3.0] * 40)) + '{"torn')
    case = evidence.read([made.path, tmp_path / "nothing"])
    assert len(case.trainings[0].rows) == 40
    monkeypatch.setattr(verb, "_folders", lambda root, reference: ([made.path], None))
    assert verb.main(["instruct"]) == 0
    said = capsys.readouterr().out
    assert "1. instruct: learning rate 1e-06 is 2,000 times below" in said
    assert "the loss did not fall" in said
    assert max(map(len, said.splitlines())) <= 80
    assert verb.main(["instruct", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["causes"][0]["rule"] == "rate"


@pytest.mark.parametrize("how", ["no archive", "no object", "no JSON", "torn"])
def test_a_damaged_ledger_counts_as_empty(trained, how):
    case = trained(GOOD)
    whole = gzip.compress(b'{"used": 1, "truncated": true}\n' * 999)
    torn = whole[:10] + b"\xff" * 8 + whole[18:]
    contents = {"no object": gzip.compress(b"[1]\n"), "no JSON": gzip.compress(b"{}\n{\n"), "torn": torn}
    (case.job.path / "ledger.jsonl.gz").write_bytes(contents.get(how, b"no archive"))
    assert case.cut == (0, 0)


@pytest.fixture
def attempts(smoke, tmp_path):
    """A failed run, and how a stage is begun that its folder does not name."""
    config = smoke(f"output={tmp_path}")
    folder = tmp_path / "runs" / "smoke" / "1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: smoke\n")
    with pytest.raises(ValueError, match="full"), record.kept(folder, config, ((), ()), lambda: ()):
        raise ValueError("the disk is full")

    def begin(name, *overrides):
        run = smoke(f"output={tmp_path}", *overrides)
        planned, _ = graph.plan(run)
        whole = pipeline.Run(run, planned, identity.keys(planned, run), folder)
        made = pipeline.job_of(whole, next(item for item in planned if item.name == name))
        made.path.mkdir(parents=True, exist_ok=True)
        (made.path / "job.json").write_text(made.to_json())
        return made.path

    return begin


@pytest.mark.parametrize(
    "other",
    ["stage.instruct.optim.lr=0.5", "model.max_length=96", "data.shapes_instruct.on_error=skip",
     "hardware.precision=bf16", "name=other"],
)  # fmt: skip
def test_stages_that_another_attempt_has_begun_are_left_out(attempts, tmp_path, other):
    theirs = attempts("instruct", other)
    assert verb._folders(tmp_path, "smoke/1") == ([], "the disk is full")
    ours = attempts("instruct", *(["stage.instruct.log_every=7"] if other != "name=other" else []))
    found, _ = verb._folders(tmp_path, "smoke/1")
    assert found == [ours]
    assert (ours != theirs) == (other != "name=other")
