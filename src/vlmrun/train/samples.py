"""What is trained on: a job's records as batches, in the order of its schedule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vlmrun import jsonl, logs
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import ModelConfig, Order, TrainStage
from vlmrun.data import lengths, order, templates
from vlmrun.data.collate import Collator, dropped_token
from vlmrun.data.compat import settings
from vlmrun.data.dataset import Dataset
from vlmrun.data.encoder import Encoder
from vlmrun.data.images import seeing
from vlmrun.data.images.cache import PictureCache
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.loader import Reading, batches
from vlmrun.data.packing import PackedSchedule
from vlmrun.data.reading import list_skipped
from vlmrun.data.records import open_datasets
from vlmrun.data.sampler import Schedule
from vlmrun.data.shards import metadata
from vlmrun.data.shards.order import Loading
from vlmrun.data.shards.schedule import EnergonSchedule
from vlmrun.errors import ConfigError
from vlmrun.model.parts import Loaded
from vlmrun.names import SKIPPED
from vlmrun.train import dist

log = logs.get(__name__)

INDEX = "index"
LENGTHS = "lengths.npy"
# A draft is this much larger than the tower's images, so that scaling it down still smooths.
_FINER = 2


def template_of(model: ModelConfig, stage: TrainStage) -> templates.Template:
    """How turns become text in a stage."""
    return settings.effective(
        templates.marked(derived.template(stage, model), model.image_markers),
        v0_is_v1=stage.compat.v0_is_v1,
        llama3_system_header=stage.compat.llama3_system_header,
    )


class Samples:
    """The data of one train stage, and how it becomes batches. Every rank makes it at the same time.

    Raises:
        DataError: for records that cannot be used.
        ConfigError: when the data cannot teach what is to be trained, or fill no schedule.
    """

    def __init__(self, job: StageJob, stage: TrainStage, loaded: Loaded) -> None:
        self.job, self.stage, self.loaded = job, stage, loaded
        self.template = template_of(job.model, stage)
        self.encoder = self._encoder()
        self.dataset = self._open(stage.data, job.path / INDEX, stage.max_samples)
        self._check_images()
        self.collator = self._collator()
        self.schedule = self._schedule()

    def held_out(self, names: list[str]) -> Dataset:
        """Data that is looked at and not trained on."""
        return self._open(names, self.job.path / INDEX / "eval")

    def batches(self, first_step: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """This rank's micro batches of every step from one on."""
        stage = self.stage
        return batches(
            self.dataset,
            self.schedule,
            self.collator,
            rank=dist.data_rank(),
            first_step=first_step,
            reading=Reading(stage.workers, stage.prefetch, pin=dist.device(self.job.hardware).type == "cuda"),
        )

    def list_skipped(self, found: list[dict[str, Any]]) -> None:
        """Notes samples that turned out to be unusable."""
        if found:
            list_skipped(self.job.path / SKIPPED, found)

    def n_skipped(self) -> int:
        """How many are noted."""
        return len(jsonl.lines(self.job.path / SKIPPED))

    def _encoder(self) -> Encoder:
        transform = ImageTransform(self.loaded.preprocessor, self.loaded.model.tiles)
        return Encoder(
            template=self.template,
            tokenizer=self.loaded.tokenizer,
            image_transform=transform,
            aspect=self.stage.image_aspect,
            image_tokens=self.loaded.vlm.image_tokens,
            max_length=self.job.model.max_length,
            compat=self.stage.compat,
            view=seeing.view_of(derived.image_background(self.stage)),
            draft=_FINER * max(transform.size) if self.stage.image_decode == "draft" else None,
            pictures=self._pictures(),
            slices=derived.slices(self.loaded.model),
        )

    def _pictures(self) -> PictureCache | None:
        stage = self.stage
        if stage.image_cache is None:
            return None
        tiles = self.loaded.model.tiles
        known = [self.loaded.preprocessor, tiles and tiles.model_dump()]
        asked = [stage.image_aspect, stage.image_decode, derived.image_background(stage)]
        version = [] if asked[-1] is None else [seeing.VERSION]
        preparation = json.dumps([*known, *asked, *version], sort_keys=True)
        return PictureCache(Path(stage.image_cache).expanduser(), preparation)

    def _open(self, names: list[str], folder: Path, first: int | None = None) -> Dataset:
        skipped = self.job.path / SKIPPED
        with dist.main_first():  # it reads the annotation files; the others open the index it made
            return open_datasets(
                self.job.data, names, encoder=self.encoder, skipped=skipped, folder=folder, first=first
            )

    def _collator(self) -> Collator:
        tokenizer, quirks, vlm = self.loaded.tokenizer, self.stage.compat, self.loaded.vlm
        pad_id = tokenizer.pad_token_id
        return Collator(
            0 if pad_id is None else pad_id,
            vlm.image_tokens,
            vlm.image_size,
            dropped_id=dropped_token(tokenizer, mask_pad_tokens=quirks.mask_pad_tokens, project=quirks.labels),
        )

    def _check_images(self) -> None:
        """A tower or connector learns nothing from text alone."""
        learning = [part for part in ("tower", "connector") if getattr(self.stage.tune, part) != "freeze"]
        if learning and not self.dataset.has_pictures():
            raise ConfigError(
                f"the {' and the '.join(learning)} cannot learn: no record has an image",
                f"data {', '.join(self.stage.data)}",
                f"freeze it (tune.{learning[0]}: freeze), or choose data with images",
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
        given = "warmup_ratio" if self.stage.optim.warmup_steps is None else "warmup_steps"
        if derived.warmup_steps(self.stage.optim, schedule.steps) >= schedule.steps:
            raise ConfigError(
                f"all {schedule.steps} step(s) are warm-up, and the first has rate 0: hardly anything would be trained",
                f"stage.{self.job.name}.optim.{given}",
                f"give more data or epochs, a smaller global_batch, or {given}=0",
            )
        unfit = derived.unfit(self.stage.optim, schedule.steps)
        if unfit is not None:
            where = f"stage.{self.job.name}.optim.{unfit[0]}"
            raise ConfigError(unfit[1], where, "a shorter warm-up or cooldown, or more data or epochs")
        wanted, epochs, n = self.stage.max_steps, self.stage.epochs, schedule.steps
        if wanted is not None and epochs is not None and wanted > n:
            log.warning("max_steps %d are not reached: %g epoch(s) are %d; raise epochs", wanted, epochs, n)
        if schedule.dropped:
            log.info("the last %d samples fill no global batch and are left out", schedule.dropped)
        return schedule

    def _laid_out(self, n_samples: int, samples: order.Order) -> Schedule:
        """Epochs of samples, or of rows that hold several, cut into batches."""
        stage = self.stage
        cut: dict[str, Any] = {
            "global_batch": stage.global_batch,
            "micro_batch": stage.micro_batch,
            "ranks": dist.data_world(),
            "max_steps": stage.max_steps,
            "seed": stage.seed,
        }
        if stage.order is not None:
            return self._as_energon(stage.order, epochs=stage.epochs, **cut)
        if stage.packing is None:
            return Schedule(n_samples, epochs=stage.epochs, order=samples, **cut)
        assert stage.epochs is not None, "checked: packing lays out whole passes"
        packed = PackedSchedule(
            self._token_lengths(), samples, stage.packing, n_samples=n_samples, epochs=stage.epochs, **cut
        )
        log.info("%s", packed.told())
        return packed

    def _as_energon(self, order: Order, **cut: Any) -> Schedule:
        config = self.job.data[self.stage.data[0]]
        folder = Path(config.annotations)
        counts = metadata.counts(folder)
        shards = metadata.split(folder, config.split or "train")
        loading = Loading(
            order.name, order.ranks, order.workers, order.micro_batch, order.slice_samples, buffer=order.buffer
        )
        return EnergonSchedule([counts[shard] for shard in shards], self.dataset.places(), loading, **cut)

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
