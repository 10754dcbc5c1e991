"""The one assembly point: job -> ranks, model, data, engine, loop -> weights."""

from __future__ import annotations

import collections
import shutil
from dataclasses import dataclass
from typing import Any

from vlmrun import heartbeat, logs
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.model import tune
from vlmrun.model.parts import Loaded
from vlmrun.names import METRICS, PARTS, WEIGHTS
from vlmrun.train import audit, dist, loop, model, optim
from vlmrun.train.checkpoint import commit, reshard
from vlmrun.train.checkpoint.policy import Saver
from vlmrun.train.engine import create
from vlmrun.train.engine.base import Engine
from vlmrun.train.held_out import Evaluator
from vlmrun.train.log import Row, Tracker, open_trackers, read
from vlmrun.train.plan import Plan
from vlmrun.train.samples import INDEX, Samples
from vlmrun.train.scores import Record
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


def train(job: StageJob) -> Trained | None:
    """Carries out a train stage: fills `checkpoints/`, `metrics.jsonl` and `weights/` of the job's folder.

    Every rank calls it; rank 0 gets the result. Called again after a crash it goes on from the newest checkpoint.
    """
    stage = job.stage
    assert isinstance(stage, TrainStage)
    with dist.session(job.hardware):
        heartbeat.beat("load")
        config = model.deepspeed_config(job, stage)
        loaded = model.load(job, stage, config)
        run = _Run(job, stage, loaded, config)
        run.resume()
        run.train()
        run.prove()
        run.export()
        dist.barrier()
        if dist.is_main():
            shutil.rmtree(job.path / INDEX, ignore_errors=True)  # large, and made again when wanted
        return run.result() if dist.is_main() else None


def whole_parts(loaded: Loaded, stage: TrainStage) -> list[str]:
    """The parts that are saved from memory: a random one lies in no folder it could be linked from, trained or not."""
    changed = ("full", "new_tokens")
    return [part for part in PARTS if getattr(stage.tune, part) in changed or loaded.sources[part] is None]


class _Run:
    """The assembled pieces of one training."""

    def __init__(self, job: StageJob, stage: TrainStage, loaded: Loaded, config: dict[str, Any] | None) -> None:
        self.job, self.stage, self.loaded = job, stage, loaded
        self.counts = audit.count(loaded.vlm, stage.tune)
        audit.check(self.counts)
        log.info("%s", audit.table(self.counts))
        self.samples = Samples(job, stage, loaded)
        self.schedule = self.samples.schedule
        groups = optim.groups(loaded.vlm, stage.optim, stage.compat)
        self.engine: Engine = create(loaded.vlm, groups, stage, job.hardware, config)
        self.evaluator = self._evaluator() if stage.eval is not None else None
        self.saver = Saver(
            job.path / CHECKPOINTS,
            self.engine.save,
            self._facts(),
            n_trainable=self._n_trainable(),
            limit=stage.save_total_limit,
            background=stage.save_async,
        )
        self.done = 0
        self.trackers: list[Tracker] = []

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, if there is one."""
        found = commit.newest_good(self.saver.folder)
        if found is not None:
            self._load(found)
            self.done = found.step
            log.info("%s goes on from step %d of %d", self.job.name, found.step, self.schedule.steps)
        self.record = Record(self.job.path, self.done)
        self._choose_best()

    def train(self) -> None:
        """Runs the loop with trackers open."""
        stage, schedule = self.stage, self.schedule
        self.trackers = open_trackers(self.job, schedule.steps, self.done) if dist.is_main() else []
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
            skipped=self.samples.list_skipped,
            trackers=self.trackers,
        )
        self._set_modes()
        try:
            loop.run(self.engine, plan)
        finally:
            for tracker in self.trackers:
                tracker.close()

    def prove(self) -> None:
        """Makes sure that the last checkpoint can be read back, then takes the model that is to be the result."""
        if self.done < self.schedule.steps:  # otherwise it has just been loaded
            self.saver.prove(self.schedule.steps, self.engine.load, self._prints)
        best = self.saver.best
        if best is not None and best != self.schedule.steps:
            self._load(commit.open_step(self.saver.folder, best))
            log.info("the model of step %d was the best on held-out data: it is the result", best)

    def export(self) -> None:
        """Writes the finished model; ranks other than 0 take part in gathering it."""
        heartbeat.beat("export")
        tuning = self.stage.tune
        adapter = self.engine.gather("llm", trainable=True) if tuning.adapters else iter(())
        tensors = {part: self.engine.gather(part) for part in whole_parts(self.loaded, self.stage)}
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
            score=self.record.of(self.saver.best or self.schedule.steps),
            best=self.saver.best,
        )

    def _load(self, found: commit.Checkpoint) -> None:
        movable = reshard.is_possible(self.stage, self.job.hardware)
        if commit.check_facts(found, self.saver.facts, movable=movable):
            log.info("the checkpoint of %d ranks is resharded for %d", found.facts["ranks"], dist.world())
            reshard.load(self.engine, found.path, self.stage)
        else:
            self.engine.load(found.path)

    def _evaluator(self) -> Evaluator:
        stage = self.stage
        assert stage.eval is not None
        autocast = stage.engine == "plain" and self.job.hardware.precision == "bf16"
        dataset = self.samples.held_out(stage.eval.data)
        return Evaluator(self.engine, dataset, self.samples.collator, stage, autocast=autocast)

    def _evaluate(self, finished: int) -> bool:
        """Tries the model on held-out data when it is time, and tells whether it is the best one so far."""
        if self.evaluator is None or self.record.has(finished):
            return False
        if finished % self.evaluator.asked.steps != 0 and finished != self.schedule.steps:
            return False
        score, samples = self.evaluator.evaluate(finished)
        self.record.add(score, samples)
        for tracker in self.trackers:
            tracker.evaluated(score)
        log.info("%s  %s", self.job.name, score.line)
        return self._choose_best() == finished

    def _choose_best(self) -> int | None:
        if self.stage.keep_best is not None:
            self.saver.best = self.record.best(self.stage.keep_best)
        return self.saver.best

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint and the run that goes on from it must share."""
        frozen = [p for p in self.loaded.vlm.parameters() if not p.requires_grad]
        prints = [audit.fingerprint(tensor) for p in frozen if (tensor := self.engine.finest(p)) is not None]
        return {
            "engine": self.engine.name,
            "ranks": dist.world(),
            "precision": self.job.hardware.precision,
            "steps": self.schedule.steps,
            # With on_error: skip, records whose images came or went would shift the order of all samples.
            "samples": len(self.samples.dataset),
            "trainable": {row.part: row.n_trainable for row in self.counts},
            # Frozen weights are not in a checkpoint: they must be the same again.
            "frozen": self._sum_of(prints),
        }

    def _sum_of(self, prints: list[tuple[int, int]]) -> list[str]:
        """Fingerprints added up, that of bits and that of places; of shards only that of bits, however they are cut."""
        bits, places = (sum(numbers) % 2**64 for numbers in zip(*prints, strict=True)) if prints else (0, 0)
        if self.stage.engine == "fsdp" or (self.stage.engine == "deepspeed" and self.stage.zero == 3):
            return [str(sum(dist.gather_objects(bits)) % 2**64)]
        first: list[str] = dist.broadcast_object([str(bits), str(places)])
        return first

    def _prints(self) -> list[tuple[int, int] | None]:
        """Fingerprints of what is trained, or of this rank's share of it."""
        tensors = (self.engine.finest(p) for p in self.loaded.vlm.parameters() if p.requires_grad)
        return [None if tensor is None else audit.fingerprint(tensor) for tensor in tensors]

    def _n_trainable(self) -> int:
        return sum(row.n_trainable for row in self.counts)

    def _set_modes(self) -> None:
        """Dropout where something learns; a frozen tower and connector answer as they will after training."""
        vlm = self.loaded.vlm
        vlm.train()
        for part in ("tower", "connector"):
            vlm.get_submodule(part).train(getattr(self.stage.tune, part) != "freeze")
