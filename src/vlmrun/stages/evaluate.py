"""Answer held-out questions and score the answers."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from vlmrun import artifact, logs
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import Asking, EvaluateStage
from vlmrun.data import templates
from vlmrun.data.dataset import Encoder
from vlmrun.data.images.open import ImageTransform
from vlmrun.data.prompts import Prompts
from vlmrun.data.reading import list_skipped, rejection_error, usable
from vlmrun.data.sample import Question, Rejected
from vlmrun.errors import ConfigError, DataError
from vlmrun.eval.predict import Asked, Asker, with_other_pictures
from vlmrun.eval.progress import progress
from vlmrun.eval.vqa import score
from vlmrun.formats.load import describe, load
from vlmrun.model.parts import Loaded
from vlmrun.names import ANSWERS, SCORES, SHUFFLED, SKIPPED
from vlmrun.outcome import Result
from vlmrun.train import dist
from vlmrun.weights.reader import DTYPES

log = logs.get(__name__)


def execute(job: StageJob) -> Result | None:
    """Writes answers.jsonl, the same with shuffled pictures, and scores.json; None on ranks above 0.

    Raises:
        DataError: when questions or pictures cannot be used, unless their data says `on_error: skip`.
        CheckpointError: when the model cannot be loaded.
    """
    assert isinstance(job.stage, EvaluateStage)
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    began = time.monotonic()
    found = questions(job)
    asker = asker_of(job, Path(job.parents[job.stage.init_from]))
    with progress("answers") as report:
        answers = asker.predict(found, job.path / ANSWERS, report)
    control: list[dict[str, Any]] = []
    if job.stage.shuffle_control:
        with progress("answers with shuffled pictures") as report:
            control = asker.predict(with_other_pictures(found, job.stage.seed), job.path / SHUFFLED, report)
    if not answers:
        raise DataError("no question could be asked", str(job.path / SKIPPED), "look at the reasons there")
    scores = score(answers, control)
    artifact.write_json(job.path / SCORES, scores)
    _tell(scores)
    present = [name for name in (ANSWERS, SHUFFLED, SCORES, SKIPPED) if (job.path / name).is_file()]
    return Result(summary(scores, time.monotonic() - began), roots=tuple(present))


def asker_of(job: StageJob, folder: Path) -> Asker:
    """The model of a folder, ready to be asked as the job's stage says."""
    stage = job.stage
    assert isinstance(stage, Asking)
    dist.prepare(job.hardware)
    device = dist.device(job.hardware)
    loaded = load(folder, dtype=DTYPES[job.hardware.precision], attention=job.hardware.attention)
    encoder = Encoder(
        template=_template(stage, loaded),
        tokenizer=loaded.tokenizer,
        image_transform=ImageTransform(loaded.preprocessor, loaded.model.tiles),
        aspect=stage.image_aspect or describe(folder)["image_aspect"],
        image_tokens=loaded.vlm.image_tokens,
        max_length=loaded.model.max_length,
        slices=derived.slices(loaded.model),
    )
    return Asker(loaded.vlm.to(device).eval(), Prompts(encoder), stage.batch, stage.max_new_tokens)


def _template(stage: Asking, loaded: Loaded) -> templates.Template:
    """The stage's own, or the one the model was saved with."""
    if stage.template is not None:
        return templates.marked(stage.template, loaded.model.image_markers)
    if loaded.template is not None:
        return templates.Template.from_dict(loaded.template)
    return templates.marked(loaded.model.template, loaded.model.image_markers)


def questions(job: StageJob) -> list[Asked]:
    """All questions of the stage's data, or a fixed choice of `max_samples` of them."""
    assert isinstance(job.stage, Asking)
    found: list[Asked] = []
    for name in job.stage.data:
        config = job.data[name]
        skip = config.on_error == "skip"
        rejected: list[Rejected] = []
        samples = list(usable(config, rejected))
        if rejected and not skip:
            raise rejection_error(rejected)
        if rejected:
            log.warning("left out %d of %d questions (on_error: skip)", len(rejected), len(rejected) + len(samples))
            list_skipped(job.path / SKIPPED, [record.to_dict() for record in rejected])
        images = derived.image_root(config)
        for sample in samples:
            if not isinstance(sample, Question):
                raise ConfigError(
                    f"format {config.format!r} has no questions with answers", f"data.{name}.format", "use format: vqa"
                )
            found.append(Asked(sample, images, name, skip))
    if not found:
        raise DataError("no question in the data", ", ".join(job.stage.data), "look at the files")
    limit = job.stage.max_samples
    if limit is None or limit >= len(found):
        return found
    return [found[i] for i in sorted(random.Random(job.stage.seed).sample(range(len(found)), limit))]


def summary(scores: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a table shows of scores."""
    seen, unseen = scores["seen"] or {}, scores["unseen"] or {}
    return {
        "accuracy": seen.get("accuracy"),
        "accuracy_unseen": unseen.get("accuracy"),
        "chance": seen.get("chance"),
        "shuffled": seen.get("shuffled"),
        "n_questions": scores["n_questions"],
        "seconds": round(seconds, 3),
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
