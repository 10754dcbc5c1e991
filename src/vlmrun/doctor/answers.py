"""Rules about how a model answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vlmrun.doctor.evidence import Case, Evaluation
from vlmrun.doctor.finding import Finding, Rule

_MANY_CUT = 0.3
_MANY_INSIDE = 0.3
_ALIKE = 0.8
_LEARNED = 0.1  # a loss that says that the training data are known


def _chance(case: Case) -> Iterator[Finding]:
    for one in case.evaluations:
        if one.fails:
            bounds = f"95 % {one.interval.low:.1%} to {one.interval.high:.1%}"
            what = (
                f"accuracy {one.accuracy:.1%} ({bounds}, {len(one.answers):,} questions) is not above chance, "
                f"{one.chance:.1%}: always giving the most frequent answer does as well"
            )
            yield Finding(one.name, what, "see the causes")


def _blind(case: Case) -> Iterator[Finding]:
    for one in case.evaluations:
        if one.looking is not None and one.looking[1].low <= 0 and one.accuracy > 0:
            shuffled, gain = one.looking
            between = f"95 % of the gain {gain.low:+.1%} to {gain.high:+.1%}"
            what = (
                f"accuracy {one.accuracy:.1%} on the right images, {shuffled:.1%} on shuffled ones ({between}): "
                "the model answers without looking"
            )
            fix = "train the connector on captions first (pretrain); are the images the right ones: vlmrun data show"
            yield Finding(one.name, what, fix)


def _error(case: Case) -> Iterator[Finding]:
    if case.error is not None:
        yield Finding("run", f"the run did not finish: {case.error.splitlines()[0]}", "the fix that it names")


def _template(case: Case) -> Iterator[Finding]:
    for one in case.evaluations:
        trained = one.model.get("template")
        name = trained.get("name") if isinstance(trained, dict) else None
        if one.stage.template is not None and name is not None and one.stage.template != name:
            what = f"asked with the template {one.stage.template}, trained with {name}"
            yield Finding(one.name, what, f"stage.{one.name}.template=null: the model's own", 0.95)
        aspect = one.model.get("image_aspect")
        if one.stage.image_aspect is not None and aspect is not None and one.stage.image_aspect != aspect:
            what = f"shown images as image_aspect={one.stage.image_aspect}, trained with {aspect}"
            yield Finding(one.name, what, f"stage.{one.name}.image_aspect=null: the model's own", 0.85)
        if one.fails and name == "plain":
            what = "the model was trained on captions only (template plain), and is asked questions"
            yield Finding(one.name, what, "a stage that trains on conversations: stage=[pretrain,instruct]", 0.8)


def _endless(case: Case) -> Iterator[Finding]:
    for one in case.evaluations:
        cut = sum(bool(row.get("cut")) for row in one.answers)
        if cut >= _MANY_CUT * len(one.answers):
            n = one.stage.max_new_tokens
            what = f"{cut:,} of {len(one.answers):,} answers did not end within {n} tokens"
            fix = (
                "is the end of an answer supervised (vlmrun data show)? if answers are long: "
                f"stage.{one.name}.max_new_tokens={4 * n}"
            )
            yield Finding(one.name, what, fix, 0.75)


def _inside(case: Case) -> Iterator[Finding]:
    for one in case.evaluations:
        wrong = [row for row, right in zip(one.answers, one.right, strict=True) if not right]
        held = [row for row in wrong if _plain(row["expected"]) in _plain(row["answer"])]
        if wrong and len(held) >= _MANY_INSIDE * len(one.answers):
            row = held[0]
            what = (
                f"{len(held):,} of {len(wrong):,} wrong answers hold the right one and more: "
                f"{row['answer'][:40]!r} for {row['expected'][:40]!r}"
            )
            fix = "training answers, or questions, that ask for the short form: exact match compares whole answers"
            yield Finding(one.name, what, fix, 0.8)


def _alike(case: Case) -> Iterator[Finding]:
    for one in case.evaluations:
        (answer, n), *_ = Counter(row["answer"] for row in one.answers).most_common(1)
        expected = Counter(row["expected"] for row in one.answers).most_common(1)[0][1]
        total = len(one.answers)
        if total > 1 and n >= _ALIKE * total and expected < _ALIKE * total:
            what = f"{n:,} of {total:,} answers are the same: {answer[:40]!r}"
            yield Finding(one.name, what, "the images or the questions have no effect: see flat-loss and rate", 0.45)


def _elsewhere(case: Case) -> Iterator[Finding]:
    """The training data are known, and the questions are not."""
    for one in case.evaluations:
        for training in case.trainings:
            last = training.loss(0.8, 1.0)
            if one.fails and training in _makers(case, one) and last is not None and last < _LEARNED:
                passes = training.rows[-1].get("epoch", 0.0)
                known = f"loss {last:.2g} after {passes:.3g} passes"
                what = f"{training.name} learned its data ({known}), and {one.name} asks what they do not teach"
                fix = "training data that ask and answer as the questions do, and more of them"
                yield Finding(one.name, what, fix, 0.7)


def _makers(case: Case, one: Evaluation) -> list[object]:
    return [training for training in case.trainings if one in case.asked(training)]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


RULES = (
    Rule("error", "The run ended with an error.", _error, symptom=True),
    Rule("chance", "The accuracy's 95 % interval reaches down to chance.", _chance, symptom=True),
    Rule("blind", "Shuffled images are answered as well as the own ones.", _blind, symptom=True),
    Rule("template", "Asked with another template or image aspect than trained with, or trained on captions only.",
         _template),
    Rule("endless", "Three answers in ten did not end before max_new_tokens.", _endless),
    Rule("inside", "Wrong answers hold the right one and more.", _inside),
    Rule("alike", "Four answers in five are the same text.", _alike),
    Rule("elsewhere", "The training loss is near zero, and the questions are answered at chance.", _elsewhere),
)  # fmt: skip
