"""The one assembly point: job -> ranks, model, data, engine, loop -> weights."""

from __future__ import annotations

import collections
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmrun import heartbeat, logs
from vlmrun.checkpoints import native
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.data import compat, lengths, order, templates
from vlmrun.data.collate import Collator, dropped_token
from vlmrun.data.dataset import Dataset, Encoder, open_datasets
from vlmrun.data.images import ImageTransform
from vlmrun.data.loader import Reading, batches
from vlmrun.data.packing import PackedSchedule
from vlmrun.data.picture_cache import PictureCache
from vlmrun.data.reading import list_skipped
from vlmrun.data.sampler import Schedule
from vlmrun.errors import ConfigError
from vlmrun.model import tune
from vlmrun.model.parts import Loaded
from vlmrun.train import audit, dist, loop, model, optim, reshard, save
from vlmrun.train.engine import Engine, create
from vlmrun.train.held_out import Evaluator
from vlmrun.train.log import METRICS, Row, Tracker, open_trackers, read
from vlmrun.train.saver import Saver
from vlmrun.train.scores import Record

log = logs.get(__name__)

CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"
SKIPPED = "skipped.jsonl"
INDEX = "index"
# A draft is this much larger than the tower's pictures, so that scaling it down still smooths.
_FINER = 2
LENGTHS = "lengths.npy"


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


def template_of(job: StageJob, stage: TrainStage) -> templates.Template:
    """How turns become text in a stage."""
    return compat.effective(
        templates.marked(derived.template(stage, job.model), job.model.image_markers),
        v0_is_v1=stage.compat.v0_is_v1,
        llama3_system_header=stage.compat.llama3_system_header,
    )


def whole_parts(loaded: Loaded, stage: TrainStage) -> list[str]:
    """The parts that are saved from memory: a random one lies in no folder it could be linked from, trained or not."""
    changed = ("full", "new_tokens")
    return [part for part in optim.PARTS if getattr(stage.tune, part) in changed or loaded.sources[part] is None]


class _Run:
    """The assembled pieces of one training."""

    def __init__(self, job: StageJob, stage: TrainStage, loaded: Loaded, config: dict[str, Any] | None) -> None:
        self.job, self.stage, self.loaded = job, stage, loaded
        self.template = template_of(job, stage)
        self.counts = audit.count(loaded.vlm, stage.tune)
        audit.check(self.counts)
        log.info("%s", audit.table(self.counts))
        self.encoder = self._encoder()
        self.dataset = self._dataset(stage.data, job.path / INDEX)
        self._check_images()
        self.collator = self._collator()
        self.schedule = self._schedule()
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
        found = save.newest_good(self.saver.folder)
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
        plan = loop.Plan(
            name=self.job.name,
            stage=stage,
            batches=batches(
                self.dataset,
                schedule,
                self.collator,
                rank=dist.data_rank(),
                first_step=self.done,
                reading=Reading(stage.workers, stage.prefetch, pin=dist.device(self.job.hardware).type == "cuda"),
            ),
            steps=schedule.steps,
            done=self.done,
            epoch=schedule.epoch,
            rate=optim.schedule(stage.optim, schedule.steps, offloaded=stage.compat.offload_schedule),
            saver=self.saver,
            evaluate=self._evaluate,
            skipped=self._list_skipped,
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
            self._load(save.open_step(self.saver.folder, best))
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
            template=self.template.to_dict(),
            image_aspect=self.stage.image_aspect,
            tensors=tensors,
            adapter=(tune.adapter_config(self.loaded.vlm.llm), state) if state else None,
        )

    def result(self) -> Trained:
        """What to tell about the training; rows of an earlier process included."""
        listed = self.job.path / SKIPPED
        return Trained(
            rows=list(read(self.job.path / METRICS)),
            n_skipped=len(listed.read_text("utf-8").splitlines()) if listed.is_file() else 0,
            n_dropped=self.schedule.dropped,
            n_trainable=self._n_trainable(),
            engine=self.engine.name,
            score=self.record.of(self.saver.best or self.schedule.steps),
            best=self.saver.best,
        )

    def _load(self, found: save.Checkpoint) -> None:
        movable = reshard.is_possible(self.stage, self.job.hardware)
        if save.check_facts(found, self.saver.facts, movable=movable):
            log.info("the checkpoint of %d ranks is cut anew for %d", found.facts["ranks"], dist.world())
            reshard.load(self.engine, found.path, self.stage)
        else:
            self.engine.load(found.path)

    def _encoder(self) -> Encoder:
        tiles = self.job.model.tiles
        transform = ImageTransform(self.loaded.preprocessor, tiles and tiles.grids)
        return Encoder(
            template=self.template,
            tokenizer=self.loaded.tokenizer,
            image_transform=transform,
            aspect=self.stage.image_aspect,
            image_tokens=self.loaded.vlm.image_tokens,
            max_length=self.job.model.max_length,
            compat=self.stage.compat,
            draft=_FINER * max(transform.size) if self.stage.image_decode == "draft" else None,
            pictures=self._pictures(),
        )

    def _pictures(self) -> PictureCache | None:
        stage = self.stage
        if stage.image_cache is None:
            return None
        known = [self.loaded.preprocessor, self.job.model.tiles and self.job.model.tiles.grids]
        preparation = json.dumps([*known, stage.image_aspect, stage.image_decode], sort_keys=True)
        return PictureCache(Path(stage.image_cache).expanduser(), preparation)

    def _dataset(self, names: list[str], folder: Path) -> Dataset:
        skipped = self.job.path / SKIPPED
        with dist.main_first():  # it reads the annotation files; the others open the index it made
            return open_datasets(self.job.data, names, encoder=self.encoder, skipped=skipped, folder=folder)

    def _collator(self) -> Collator:
        tokenizer, quirks, vlm = self.loaded.tokenizer, self.stage.compat, self.loaded.vlm
        pad_id = tokenizer.pad_token_id
        return Collator(
            0 if pad_id is None else pad_id,
            vlm.image_tokens,
            vlm.image_size,
            dropped_id=dropped_token(tokenizer, mask_pad_tokens=quirks.mask_pad_tokens, project=quirks.labels),
        )

    def _evaluator(self) -> Evaluator:
        stage = self.stage
        assert stage.eval is not None
        autocast = stage.engine == "plain" and self.job.hardware.precision == "bf16"
        dataset = self._dataset(stage.eval.data, self.job.path / INDEX / "eval")
        return Evaluator(self.engine, dataset, self.collator, stage, autocast=autocast)

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

    def _check_images(self) -> None:
        """A tower or connector learns nothing from text alone."""
        seeing = [part for part in ("tower", "connector") if getattr(self.stage.tune, part) != "freeze"]
        if seeing and not self.dataset.has_pictures():
            raise ConfigError(
                f"the {' and the '.join(seeing)} cannot learn: no record has an image",
                f"data {', '.join(self.stage.data)}",
                f"freeze it (tune.{seeing[0]}: freeze), or choose data with images",
            )

    def _schedule(self) -> Schedule:
        counts, weights = self.dataset.counts(), self.stage.data_weights
        if weights is not None and len(weights) != len(counts):
            raise ConfigError(
                f"{len(weights)} data weights, but {len(counts)} sources with usable records",
                f"stage.{self.job.name}.data_weights",
                "one for each source",
            )
        schedule = self._laid_out(order.pool_size(counts, weights), self._order(counts))
        told = "warmup_ratio" if self.stage.optim.warmup_steps is None else "warmup_steps"
        if derived.warmup_steps(self.stage.optim, schedule.steps) >= schedule.steps:
            raise ConfigError(
                f"all {schedule.steps} step(s) are warm-up, and the first has rate 0: hardly anything would be learnt",
                f"stage.{self.job.name}.optim.{told}",
                f"give more data or epochs, a smaller global_batch, or {told}=0",
            )
        if schedule.dropped:
            log.info("the last %d samples fill no global batch and are left out", schedule.dropped)
        return schedule

    def _laid_out(self, n_samples: int, samples: order.Order) -> Schedule:
        """Epochs of samples, or of rows that hold several, cut into batches."""
        stage = self.stage
        cut = {
            "global_batch": stage.global_batch,
            "micro_batch": stage.micro_batch,
            "ranks": dist.data_world(),
            "max_steps": stage.max_steps,
            "seed": stage.seed,
        }
        if stage.packing is None:
            return Schedule(n_samples, epochs=stage.epochs, order=samples, **cut)
        packed = PackedSchedule(
            self._token_lengths(), samples, stage.packing, n_samples=n_samples, epochs=stage.epochs, **cut
        )
        log.info("%s", packed.told())
        return packed

    def _token_lengths(self) -> np.ndarray:
        """Positions of every sample: measured once by all ranks together, then kept in the stage's folder."""
        file, n = self.job.path / LENGTHS, len(self.dataset)
        known = lengths.read(file, n) if dist.is_main() else None
        if dist.broadcast_object(known is None):
            mine = lengths.measure(self.dataset, self.collator, range(dist.rank(), n, dist.world()), n)
            parts = dist.gather_objects(mine)
            if dist.is_main():
                known = lengths.write(file, [parts[i % len(parts)][i // len(parts)] for i in range(n)])
        found: np.ndarray = dist.broadcast_object(known)
        return found

    def _order(self, counts: list[int]) -> order.Order:
        """How the samples of an epoch follow one another."""
        stage = self.stage
        world, version = stage.global_batch // stage.micro_batch, stage.compat.transformers_order
        if version is not None:
            words = self.dataset.lengths()
            if stage.group_by_modality_length:
                return order.transformers_by_length(words, seed=stage.seed, micro_batch=stage.micro_batch, world=world)
            return order.transformers_shuffled(len(words), seed=stage.seed, version=version)
        if stage.group_by_modality_length:
            return order.by_length(
                counts,
                stage.data_weights,
                self.dataset.lengths(),
                seed=stage.seed,
                micro_batch=stage.micro_batch,
                world=world,
            )
        return order.shuffled(counts, stage.data_weights, stage.seed)

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint and the run that goes on from it must share."""
        frozen = [p for p in self.loaded.vlm.parameters() if not p.requires_grad]
        prints = [audit.fingerprint(tensor) for p in frozen if (tensor := self.engine.finest(p)) is not None]
        return {
            "engine": self.engine.name,
            "ranks": dist.world(),
            "precision": self.job.hardware.precision,
            "steps": self.schedule.steps,
            # With on_error: skip, records whose pictures came or went would shift the order of all samples.
            "samples": len(self.dataset),
            "trainable": {row.part: row.n_trainable for row in self.counts},
            # Frozen weights are not in a checkpoint: they must be the same again.
            "frozen": self._sum_of(prints),
        }

    def _sum_of(self, prints: list[tuple[int, int]]) -> list[str]:
        """Fingerprints added up, that of bits and that of places; of shards only that of bits, however they are cut."""
        bits, places = (sum(numbers) % 2**64 for numbers in zip(*prints, strict=True)) if prints else (0, 0)
        if self.stage.engine == "fsdp" or (self.stage.engine == "deepspeed" and self.stage.zero == 3):
            return [str(sum(dist.gather_objects(bits)) % 2**64)]
        return dist.broadcast_object([str(bits), str(places)])

    def _prints(self) -> list[tuple[int, int] | None]:
        """Fingerprints of what is trained, or of this rank's share of it."""
        tensors = (self.engine.finest(p) for p in self.loaded.vlm.parameters() if p.requires_grad)
        return [None if tensor is None else audit.fingerprint(tensor) for tensor in tensors]

    def _n_trainable(self) -> int:
        return sum(row.n_trainable for row in self.counts)

    def _list_skipped(self, found: list[dict[str, Any]]) -> None:
        if found:
            list_skipped(self.job.path / SKIPPED, found)

    def _set_modes(self) -> None:
        """Dropout where something learns; a frozen tower and connector answer as they will after training."""
        vlm = self.loaded.vlm
        vlm.train()
        for part in ("tower", "connector"):
            vlm.get_submodule(part).train(getattr(self.stage.tune, part) != "freeze")
