"""The `train` stage."""

from __future__ import annotations

from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.names import HELD_OUT, LEDGER, METRICS, SAMPLES, SKIPPED, WEIGHTS
from vlmrun.outcome import Result
from vlmrun.stages import meanwhile
from vlmrun.train import setup
from vlmrun.train.log import data_wait


def execute(job: StageJob) -> Result | None:
    """Trains, and tells what a table shows; None on ranks other than 0."""
    assert isinstance(job.stage, TrainStage)
    trained = setup.train(job, meanwhile.questions(job, job.stage))
    if trained is None:
        return None
    losses = [row.loss for row in trained.rows if row.loss is not None]
    summary = {
        "steps": len(trained.rows),
        "loss": losses[-1] if losses else None,
        "seconds": round(sum(row.seconds for row in trained.rows), 3),
        "data_wait": round(data_wait(trained.rows), 4),
        "supervised_tokens": sum(row.supervised_tokens for row in trained.rows),
        "tokens": sum(row.tokens for row in trained.rows),
        "samples": sum(row.samples for row in trained.rows),
        "skipped": trained.n_skipped,
        "dropped": trained.n_dropped,
        "trainable": trained.n_trainable,
        "engine": trained.engine,
    }
    if trained.score is not None:
        summary |= {"eval_loss": trained.score["loss"], "eval_exact_match": trained.score["exact_match"]}
        summary |= {f"eval_{name}": value for name, value in trained.score.get("benchmarks", {}).items()}
    if trained.best is not None:
        summary["best_step"] = trained.best
    if trained.stopped:
        summary["stopped_early"] = True
    roots = [WEIGHTS, METRICS]
    roots += [name for name in (SKIPPED, LEDGER, HELD_OUT, SAMPLES) if (job.path / name).is_file()]
    return Result(summary, tuple(roots))
