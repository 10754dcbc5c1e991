"""What a training is asked meanwhile: the benchmarks among `eval.data`, as evaluate stages ask and score them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlmrun import logs
from vlmrun.config.job import StageJob
from vlmrun.config.schema import BenchmarkConfig, TrainStage
from vlmrun.data.reading import rejection_error
from vlmrun.data.sample import Rejected
from vlmrun.eval import cards, sets
from vlmrun.eval.asked import Asked, batches, line, until_stop
from vlmrun.train.benchmarks import Ask, Questions
from vlmrun.train.samples import INDEX

log = logs.get(__name__)


def questions(job: StageJob, stage: TrainStage) -> Questions | None:
    """Questions of all benchmarks that the stage is evaluated on; None without one.

    Raises:
        DataError: for questions, expected answers or images that cannot be used.
    """
    named = () if stage.eval is None else stage.eval.data
    configs = {name: config for name in named if isinstance(config := job.data[name], BenchmarkConfig)}
    if not configs:
        return None
    asked: list[Asked] = []
    left_out: list[Rejected] = []
    for name, config in configs.items():
        found, rejected = _of(name, config, stage, job.path / INDEX)
        asked += found
        left_out += rejected
    places = {one.key: place for place, one in enumerate(asked)}
    return Questions(
        asks=[_ask(one) for one in asked],
        batches=[[places[one.key] for one in batch] for batch in batches(asked, stage.micro_batch)],
        score=lambda texts: _scores(asked, texts),
        sets=list(configs),
        left_out=left_out,
    )


def _of(name: str, config: BenchmarkConfig, stage: TrainStage, folder: Path) -> tuple[list[Asked], list[Rejected]]:
    found, rejected = sets.asked(name, config, folder / "pictures")
    if rejected and config.on_error != "skip":
        raise rejection_error(rejected)
    if rejected:
        n_questions = len(found) + len(rejected)
        log.warning("left out %d of %d questions of %s (on_error: skip)", len(rejected), n_questions, name)
    assert stage.eval is not None
    return sets.chosen(found, stage.eval.max_samples, stage.seed), rejected


def _ask(asked: Asked) -> Ask:
    assert asked.benchmark is not None
    how = asked.benchmark.config.generation
    return Ask(asked.data, asked.question, asked.images, how.max_new_tokens, asked.skip)


def _scores(asked: list[Asked], texts: Mapping[int, str]) -> dict[str, float | None]:
    rows = []
    for place, text in sorted(texts.items()):
        benchmark = asked[place].benchmark
        assert benchmark is not None
        rows.append(line(asked[place], until_stop(text, benchmark.config.generation.stop)))
    answered = [asked[place] for place in sorted(texts)]
    made, _ = cards.make(answered, rows, {}, template="", image_aspect="")
    return {name: card["value"] for name, card in made.items()}
