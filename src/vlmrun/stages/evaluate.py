"""Answer held-out questions and score the answers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmrun import artifact, logs, store
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import Asking, BenchmarkConfig, DataConfig, EvaluateStage
from vlmrun.data import templates
from vlmrun.data.encoder import Encoder
from vlmrun.data.images.finding import folder_of
from vlmrun.data.images.seeing import view_of
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.prompts import Prompts
from vlmrun.data.reading import list_skipped, rejection_error, usable
from vlmrun.data.sample import Question, Rejected
from vlmrun.errors import ConfigError, DataError
from vlmrun.eval import cards, protocol, sets
from vlmrun.eval.asked import Asked, with_other_pictures, without_pictures
from vlmrun.eval.predict import Asker, Ranks
from vlmrun.eval.progress import progress
from vlmrun.eval.vqa import score
from vlmrun.formats.load import describe, load
from vlmrun.model.parts import Loaded
from vlmrun.names import ANSWERS, MARKS, SCORES, SHUFFLED, SKIPPED
from vlmrun.outcome import Result
from vlmrun.train import dist
from vlmrun.weights.reader import DTYPES

log = logs.get(__name__)

BLIND = "answers_blind.jsonl"
UPSTREAM = "upstream"  # answers of benchmarks as the original scripts write them
_PICTURES = "pictures"  # of sets that hold them in base64


def execute(job: StageJob) -> Result | None:
    """Writes answers.jsonl, the same with shuffled images, and scores.json; None on ranks above 0.

    Every rank answers its share. Of benchmarks also marks.jsonl, with how each answer was read, and their answers in
    upstream's layout.

    Raises:
        DataError: when questions or images cannot be used, unless their data says `on_error: skip`.
        CheckpointError: when the model cannot be loaded.
    """
    assert isinstance(job.stage, EvaluateStage)
    began = time.monotonic()
    with dist.session(job.hardware):
        found = questions(job)
        asker = asker_of(job, Path(job.parents[job.stage.init_from]))
        controls: dict[str, tuple[str, list[Asked]]] = {}
        if job.stage.shuffle_control:
            controls["shuffled"] = (SHUFFLED, with_other_pictures(found, job.stage.seed))
        if blind := without_pictures(found, every=job.stage.blind_control):
            controls["blind"] = (BLIND, blind)
        with progress("answers") as report:
            answers = asker.predict(found, job.path / ANSWERS, report)
        others: dict[str, list[dict[str, Any]]] = {}
        for name, (file, asked) in controls.items():
            with progress(f"answers, control {name}") as report:
                others[name] = asker.predict(asked, job.path / file, report)
        if not dist.is_main():
            return None
    if not answers:
        raise DataError("no question could be asked", str(job.path / SKIPPED), "look at the reasons there")
    return _scored(job, asker, found, answers, others, time.monotonic() - began)


def _scored(
    job: StageJob,
    asker: Asker,
    found: list[Asked],
    answers: list[dict[str, Any]],
    others: dict[str, list[dict[str, Any]]],
    seconds: float,
) -> Result:
    plain = {one.data for one in found if one.benchmark is None}
    rows, shuffled = ([row for row in each if row["data"] in plain] for each in (answers, others.get("shuffled", [])))
    scores = score(rows, shuffled, [row for row in others.get("blind", []) if row["data"] in plain])
    encoder = asker.prompts.encoder
    if plain:
        scores["protocol"] = protocol.of_questions(
            template=encoder.template.name, image_aspect=encoder.aspect, max_new_tokens=asker.max_new_tokens
        )
    made, marks = cards.make(
        found, answers, others, template=encoder.template.name, image_aspect=encoder.aspect, run=job.run
    )
    if elsewhere := cards.unscored(found, answers, job.run):
        scores["unscored"] = elsewhere
    if made:
        scores["benchmarks"] = made
        artifact.write_text(job.path / MARKS, "".join(json.dumps(mark) + "\n" for mark in marks))
    for name, text in cards.upstream_files(found, answers, f"{job.name}-{job.key}").items():
        artifact.write_text(job.path / UPSTREAM / f"{name}.jsonl", text)
    artifact.write_json(job.path / SCORES, scores)
    _tell(scores)
    names = (ANSWERS, SHUFFLED, BLIND, MARKS, SCORES, SKIPPED, UPSTREAM)
    return Result(
        summary(scores, seconds, len(answers)), roots=tuple(name for name in names if (job.path / name).exists())
    )


def asker_of(job: StageJob, folder: Path) -> Asker:
    """The model of a folder, ready to be asked as the job's stage says."""
    stage = job.stage
    assert isinstance(stage, Asking)
    dist.prepare(job.hardware)
    device, came_as = dist.device(job.hardware), store.came_as(folder)
    loaded = load(folder, dtype=DTYPES[job.hardware.precision], attention=job.hardware.attention, came_as=came_as)
    described = describe(folder, came_as)
    encoder = Encoder(
        template=_template(stage, loaded),
        tokenizer=loaded.tokenizer,
        image_transform=ImageTransform(loaded.preprocessor, loaded.model.tiles),
        aspect=stage.image_aspect or described["image_aspect"],
        image_tokens=loaded.vlm.image_tokens,
        max_length=loaded.model.max_length,
        view=view_of(described.get("image_background")),
        slices=derived.slices(loaded.model),
    )
    ranks = Ranks(dist.rank(), dist.world(), dist.barrier)
    return Asker(loaded.vlm.to(device).eval(), Prompts(encoder), stage.batch, stage.max_new_tokens, stage.seed, ranks)


def _template(stage: Asking, loaded: Loaded) -> templates.Template:
    """The stage's own, or the one the model was saved with."""
    if stage.template is not None:
        return templates.marked(stage.template, loaded.model.image_markers)
    if loaded.template is not None:
        return templates.Template.from_dict(loaded.template)
    return templates.marked(loaded.model.template, loaded.model.image_markers)


def questions(job: StageJob) -> list[Asked]:
    """All questions of the stage's data, or a fixed choice of `max_samples` of them (as many of each benchmark)."""
    assert isinstance(job.stage, Asking)
    plain: list[Asked] = []
    found: list[Asked] = []
    for name in job.stage.data:
        config = job.data[name]
        if isinstance(config, BenchmarkConfig):
            asked, rejected = sets.asked(name, config, job.path / _PICTURES)
            _refuse(job, rejected, len(asked), skip=config.on_error == "skip")
            found += sets.chosen(asked, job.stage.max_samples, job.stage.seed)
        else:
            plain += _of_data(job, name, config)
    found = [*sets.chosen(plain, job.stage.max_samples, job.stage.seed), *found]
    if not found:
        raise DataError("no question in the data", ", ".join(job.stage.data), "look at the files")
    return [
        replace(asked, draw=draw)
        for asked in found
        for draw in range(1 if asked.benchmark is None else asked.benchmark.config.generation.answers)
    ]


def _of_data(job: StageJob, name: str, config: DataConfig) -> list[Asked]:
    skip = config.on_error == "skip"
    rejected: list[Rejected] = []
    samples = list(usable(config, rejected))
    _refuse(job, rejected, len(samples), skip=skip)
    images = folder_of(config)
    found = []
    for sample in samples:
        if not isinstance(sample, Question):
            raise ConfigError(
                f"format {config.format!r} has no questions with answers", f"data.{name}.format", "use format: vqa"
            )
        found.append(Asked(sample, images, name, skip))
    return found


def _refuse(job: StageJob, rejected: list[Rejected], n_samples: int, *, skip: bool) -> None:
    if not rejected:
        return
    if not skip:
        raise rejection_error(rejected)
    log.warning("left out %d of %d questions (on_error: skip)", len(rejected), len(rejected) + n_samples)
    if dist.is_main():
        list_skipped(job.path / SKIPPED, [record.to_dict() for record in rejected])


def summary(scores: dict[str, Any], seconds: float, n_answers: int | None = None) -> dict[str, Any]:
    """What a table shows of scores; of each benchmark its score by its name."""
    seen, unseen = scores["seen"] or {}, scores["unseen"] or {}
    return {
        "accuracy": seen.get("accuracy"),
        "accuracy_unseen": unseen.get("accuracy"),
        "chance": seen.get("chance"),
        "shuffled": seen.get("shuffled"),
        "n_questions": scores["n_questions"] if n_answers is None else n_answers,
        "seconds": round(seconds, 3),
        **{name: card["value"] for name, card in scores.get("benchmarks", {}).items()},
    }


def _tell(scores: dict[str, Any]) -> None:
    """A line for each group."""
    for label, name in (("exact match", "seen"), ("exact match, unseen combinations", "unseen")):
        group = scores[name]
        if group is not None:
            shuffled = "not asked" if group["shuffled"] is None else f"{group['shuffled']:.1%}"
            accuracy, chance = f"{group['accuracy']:.1%}", f"{group['chance']:.1%}"
            n_questions = group["n_questions"]
            log.info("%s: %s of %d (chance %s, shuffled %s)", label, accuracy, n_questions, chance, shuffled)
    for name, card in scores.get("benchmarks", {}).items():
        log.info("%s: %s, protocol %s", name, _told(card), card["protocol"]["id"])


def _told(card: dict[str, Any]) -> str:
    """A score with its interval, in per cent or in its own points."""
    bounds = [card["value"], *(card["interval"] or ())]
    if card["value"] is None:
        return "not defined for these answers"
    value, *ends = (f"{100 * each:.1f}" if card["scale"] == 1.0 else f"{each:.1f}" for each in bounds)
    return value + (f", 95 % {ends[0]} to {ends[1]}" if ends else "")
