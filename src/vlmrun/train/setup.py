"""The one assembly point: job -> ranks, model, data, engine, loop -> weights."""

from __future__ import annotations

import collections
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import heartbeat, logs
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.model import tower_adapter, tune
from vlmrun.model.parts import Loaded
from vlmrun.names import METRICS, WEIGHTS
from vlmrun.train import audit, dist, facts, held_out, loop, model, optim
from vlmrun.train.benchmarks import Questions
from vlmrun.train.checkpoint import commit, reshard
from vlmrun.train.checkpoint.policy import Saver
from vlmrun.train.ema import Ema
from vlmrun.train.engine import create
from vlmrun.train.engine.base import Engine
from vlmrun.train.evaluations import Evaluations
from vlmrun.train.ledger import Ledger
from vlmrun.train.log import Row, Tracker, read
from vlmrun.train.plan import Plan
from vlmrun.train.samples import INDEX, Samples
from vlmrun.train.trackers import close, open_trackers
from vlmrun.weights import native

log = logs.get(__name__)

CHECKPOINTS = "checkpoints"


@dataclass
class Trained:
    """What a finished training leaves behind besides its files."""

    rows: list[Row]
    n_skipped: int
    n_dropped: int
    n_trainable: int
    engine: str
    score: dict[str, Any] | None  # the evaluation on held-out data of the model that is the result
    best: int | None  # the step it is of, with keep_best
    stopped: bool  # before all steps, by eval.patience


def train(job: StageJob, benchmarks: Questions | None = None) -> Trained | None:
    """Carries out a train stage: fills `checkpoints/`, `metrics.jsonl` and `weights/` of the job's folder.

    Every rank calls it; rank 0 gets the result. Called again after a crash it resumes from the newest checkpoint.

    Args:
        benchmarks: of the stage's `eval.data`.
    """
    stage = job.stage
    assert isinstance(stage, TrainStage)
    with dist.session(job.hardware):
        heartbeat.beat("load")
        config = model.deepspeed_config(job, stage)
        loaded = model.load(job, stage, config)
        run = _Run(job, loaded, config, benchmarks)
        run.resume()
        run.train()
        run.prove()
        run.export()
        model.release(loaded)
        dist.barrier()
        if dist.is_main():
            run.ledger.finish(run.samples.dataset, run.end)
            shutil.rmtree(job.path / INDEX, ignore_errors=True)  # large, and made again when wanted
        return run.result() if dist.is_main() else None


class _Run:
    """The assembled pieces of one training."""

    def __init__(self, job: StageJob, loaded: Loaded, config: dict[str, Any] | None, asked: Questions | None) -> None:
        assert isinstance(job.stage, TrainStage)
        stage = job.stage
        self.job, self.stage, self.loaded, self.benchmarks = job, stage, loaded, asked
        self.counts = audit.count(loaded.vlm, stage.tune)
        audit.check(self.counts)
        log.info("%s", audit.table(self.counts))
        self.samples = Samples(job, stage, loaded)
        self.schedule = self.samples.schedule
        groups = optim.groups(loaded.vlm, stage.optim, stage.compat)
        self.engine: Engine = create(loaded.vlm, groups, stage, job.hardware, config)
        self.ema = Ema(self.engine, stage) if stage.ema is not None else None
        self.saver = Saver(
            job.path / CHECKPOINTS,
            self._write,
            facts.of(self.engine, job, stage, self.samples, self.counts),
            n_trainable=self._n_trainable(),
            limit=stage.save_total_limit,
            background=stage.save_async,
        )
        self.done = self.end = 0
        self.score: dict[str, Any] | None = None  # of averaged weights, which are evaluated once
        self.trackers: list[Tracker] = []
        self.ledger = Ledger(job)

    def resume(self) -> None:
        """Resumes from the newest complete checkpoint, if there is one."""
        found = commit.newest_good(self.saver.folder)
        if found is not None:
            self._load(found)
            self.done = found.step
            log.info("%s goes on from step %d of %d", self.job.name, found.step, self.schedule.steps)
        evaluator = held_out.create(self.engine, self.job, self.samples, self.benchmarks)
        self.evaluations = Evaluations(self.job, self.stage, evaluator, self.schedule, self.done)
        self.saver.best = self.evaluations.best

    def train(self) -> None:
        """Runs the loop with trackers open."""
        stage, schedule = self.stage, self.schedule
        if dist.is_main():
            scores = self.evaluations.record.scores
            self.trackers = open_trackers(self.job, stage.log_steps, schedule.steps, self.done, scores)
        plan = Plan(
            name=self.job.name,
            stage=stage,
            batches=self.samples.batches(self.done),
            steps=schedule.steps,
            done=self.done,
            epoch=schedule.epoch,
            rate=optim.schedule(
                stage.optim, schedule.steps, batch=stage.global_batch, offloaded=stage.compat.offload_schedule
            ),
            weight_decay=optim.weight_decay(stage.optim, schedule.steps),
            saver=self.saver,
            evaluate=self._evaluate,
            updated=self.ema.update if self.ema is not None else (lambda finished: None),
            is_over=self.evaluations.is_over,
            loss=self._last_loss(),
            skipped=self.samples.list_skipped,
            used=self.ledger.add,
            trackers=self.trackers,
        )
        self._set_modes()
        self.ledger.open(self.done)
        try:
            self.end = loop.run(self.engine, plan)
        finally:
            self.ledger.close()
            close(self.trackers)

    def _last_loss(self) -> float | None:
        """Of the step that the run resumes after. A collective."""
        rows = read(self.job.path / METRICS) if dist.is_main() and self.stage.until_loss is not None else ()
        found: float | None = dist.broadcast_object({row.step: row.loss for row in rows}.get(self.done))
        return found

    def prove(self) -> None:
        """Makes sure that the last checkpoint can be read back, then takes the model that is to be the result."""
        if self.done < self.end:  # otherwise it has just been loaded
            self.saver.prove(self.end, self._read, self._prints)
        if self.end < self.schedule.steps:
            log.info(
                "%s stopped at step %d of %d: %s", self.job.name, self.end, self.schedule.steps, self.evaluations.why()
            )
        self.evaluations.check_best()
        best = self.saver.best
        if best is not None and best != self.end:
            self._load(commit.open_step(self.saver.folder, best))
            log.info("the model of step %d was the best on held-out data: it is the result", best)
        if self.ema is not None and self.stage.ema is not None and self.stage.ema.result:
            self.ema.apply()
            self.score = self.evaluations.score()
            log.info("the average of the weights is the result")

    def export(self) -> None:
        """Writes the finished model; ranks other than 0 take part in gathering it."""
        heartbeat.beat("export")
        tuning = self.stage.tune
        adapter = self.engine.gather("llm", trainable=True) if tuning.adapters else iter(())
        tensors = {part: self.engine.gather(part) for part in model.whole_parts(self.loaded, self.stage)}
        if tuning.tower == "lora":
            tensors["tower"] = tower_adapter.folded(self.loaded.vlm.tower, tensors["tower"])
        state = dict(adapter)
        if not dist.is_main():
            for gathered in tensors.values():
                collections.deque(gathered, maxlen=0)
            return
        native.save(
            self.job.path / WEIGHTS,
            self.loaded,
            template=self.samples.template.to_dict(),
            image_aspect=self.stage.image_aspect,
            image_background=derived.image_background(self.stage),
            tensors=tensors,
            adapter=(tune.adapter_config(self.loaded.vlm.llm), state) if state else None,
        )

    def result(self) -> Trained:
        """What to tell about the training; rows of an earlier process included."""
        return Trained(
            rows=list(read(self.job.path / METRICS)),
            n_skipped=self.samples.n_skipped(),
            n_dropped=self.schedule.dropped,
            n_trainable=self._n_trainable(),
            engine=self.engine.name,
            score=self.score or self.evaluations.record.of(self.saver.best or self.end),
            best=self.saver.best,
            stopped=self.end < self.schedule.steps,
        )

    def _load(self, found: commit.Checkpoint) -> None:
        movable = reshard.is_possible(self.stage, self.job.hardware)
        if commit.check_facts(found, self.saver.facts, movable=movable):
            log.info("the checkpoint of %d ranks is resharded for %d", found.facts["ranks"], dist.world())
            reshard.load(self.engine, found.path, self.stage)
            if self.ema is not None:
                self.ema.load(found.path)
        else:
            self._read(found.path)

    def _write(self, folder: Path) -> None:
        self.ledger.sync()
        self.engine.save(folder)
        if self.ema is not None:
            self.ema.save(folder)

    def _read(self, folder: Path) -> None:
        self.engine.load(folder)
        if self.ema is not None:
            self.ema.load(folder)

    def _evaluate(self, finished: int, loss: float | None) -> bool:
        is_best = self.evaluations.evaluate(finished, loss, self.trackers)
        self.saver.best = self.evaluations.best
        return is_best

    def _prints(self) -> list[tuple[int, int] | None]:
        """Fingerprints of what is trained, or of this rank's share of it."""
        return facts.prints(self.engine, trained=True)

    def _n_trainable(self) -> int:
        return sum(row.n_trainable for row in self.counts)

    def _set_modes(self) -> None:
        """Dropout where something learns; a frozen tower and connector answer as they will after training."""
        vlm = self.loaded.vlm
        vlm.train()
        for part in ("tower", "connector"):
            vlm.get_submodule(part).train(getattr(self.stage.tune, part) != "freeze")
