"""An intermediate training checkpoint made a whole model: what was trained by then, and the rest from where it came.

A checkpoint holds trained weights and optimizer state only. Its stage's job.json says what the training started from,
so the model is put together exactly as the trainer did, given the checkpoint's weights, and saved as a stage's weights
are: the last checkpoint of a stage gives the stage's own weights, bit for bit.

`format` makes this a format. DeepSpeed's own reader of its shards would unpickle anything: a copy of its module is used
that opens files with `weights_only` and knows the four classes that such shards hold (ADR 26).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import pickle
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.config import derived
from vlmrun.config.job import JOB_FILE, StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.errors import CheckpointError
from vlmrun.formats import native as native_format
from vlmrun.formats.base import How, Model
from vlmrun.model import tower_adapter, tune
from vlmrun.model.parts import Loaded
from vlmrun.model.pretrained import read_json, said
from vlmrun.names import WEIGHTS
from vlmrun.train import ema
from vlmrun.train import model as training_model
from vlmrun.train.checkpoint.files import MANIFEST
from vlmrun.train.engine.deepspeed import DeepSpeedEngine, quiet
from vlmrun.train.engine.fsdp import FsdpEngine
from vlmrun.train.engine.plain import PlainEngine
from vlmrun.train.samples import template_of
from vlmrun.weights import native
from vlmrun.weights.reader import DTYPES

_ANOTHER_STEP = "take another step's checkpoint"
_MODULE = "mp_rank_00_model_states.pt"


def read(folder: Path, how: How) -> Model:
    """The model as it was at that step, adapter and all; its weights lie in a temporary folder meanwhile.

    Raises:
        CheckpointError: when files are damaged, or what the training started from is gone.
    """
    _verify(folder)
    job = StageJob.read(folder.parent.parent / JOB_FILE)
    stage = job.stage
    assert isinstance(stage, TrainStage)
    if job.hardware.tensor_parallel > 1:
        raise CheckpointError(
            "checkpoints of layers that ranks share (tensor_parallel) are not put together",
            str(folder),
            "convert the finished stage's weights",
        )
    loaded = _as_trained(job, stage)
    state = _trained(folder, loaded)
    if stage.ema is not None and stage.ema.result:
        state |= ema.whole(folder, {n: p.shape for n, p in loaded.vlm.named_parameters() if p.requires_grad})
    _fill(loaded, state, folder)
    # As exported: in the type that it was trained in.
    if stage.engine == "deepspeed":
        loaded.vlm.to(DTYPES[job.hardware.precision])
    place = Path(tempfile.mkdtemp(prefix="vlmrun-"))
    try:
        _save(place / WEIGHTS, loaded, job, stage)
        model = native_format.read(place / WEIGHTS, how)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    model.held = _Temporary(place)
    return model


class _Temporary:
    """A folder that goes when no tensor is read from it any more."""

    def __init__(self, place: Path) -> None:
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)


def _verify(folder: Path) -> None:
    listed: dict[str, Any] = read_json(folder / MANIFEST, _ANOTHER_STEP)["files"]
    wrong = [
        name
        for name, file in listed.items()
        if not (folder / name).is_file() or artifact.digest(folder / name) != file["sha256"]
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint is damaged: {', '.join(wrong[:3])}", str(folder), _ANOTHER_STEP)


def _as_trained(job: StageJob, stage: TrainStage) -> Loaded:
    """The model that the trainer began with, in one process on the CPU."""
    alone = {"gpu": "cpu", "precision": "fp32", "sequence_parallel": 1}
    here = job.model_copy(update={"hardware": job.hardware.model_copy(update=alone)})
    kept = {"engine": "plain", "gradient_checkpointing": False, "offload_checkpoints": False}
    return training_model.load(here, stage.model_copy(update=kept), None)


def _trained(folder: Path, loaded: Loaded) -> dict[str, torch.Tensor]:
    """What the checkpoint holds, under the names of the parameters, in fp32 where there are masters."""
    plain, sharded = folder / PlainEngine.FILE, folder / DeepSpeedEngine.TAG
    found: dict[str, torch.Tensor]
    with _reading(folder):
        if (folder / FsdpEngine.FOLDER).is_dir():
            return _from_fsdp(folder / FsdpEngine.FOLDER, loaded)
        if plain.is_file():
            found = torch.load(plain, map_location="cpu", weights_only=True)["weights"]
        elif not list(sharded.glob("*_optim_states.pt")):  # ZeRO-0 shards nothing
            found = _load(sharded / _MODULE, map_location="cpu")["module"]
        else:
            with quiet(), contextlib.redirect_stderr(io.StringIO()):  # it draws bars
                found = _deepspeed_reader().get_fp32_state_dict_from_zero_checkpoint(
                    str(folder), tag=DeepSpeedEngine.TAG, exclude_frozen_parameters=True
                )
    return found


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """A manifest is its author's word, not a proof: what it lists may be damaged, or ask for code.

    Raises:
        CheckpointError: when a file asks for anything but tensors and DeepSpeed's classes, or is damaged.
    """
    try:
        yield
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint cannot be read as tensors: {said(error)}",
            str(folder),
            "use a checkpoint that vlmrun wrote, or the finished stage's weights",
        ) from error


def _load(file: Any, *arguments: Any, **options: Any) -> Any:
    """`torch.load` that makes tensors and DeepSpeed's four harmless classes, whatever its caller asks for."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # Each time: another thread that allows classes for a while may have put the list back to what it was.
    torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])
    return torch.load(file, *arguments, **(options | {"weights_only": True}))


class _CarefulTorch(ModuleType):
    """The module torch, except that its `load` is ours."""

    load = staticmethod(_load)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@functools.cache
def _deepspeed_reader() -> Any:
    """A copy of DeepSpeed's module that reads shards, in which `torch` is careful.

    It says `weights_only=False` and offers no choice. Replacing `torch.load` itself would change it for all threads.
    """
    spec = importlib.util.find_spec("deepspeed.utils.zero_to_fp32")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.torch = _CarefulTorch("torch")
    return module


def _from_fsdp(place: Path, loaded: Loaded) -> dict[str, torch.Tensor]:
    """Pieces of all ranks, in safetensors, joined by torch."""
    from torch.distributed import checkpoint as dcp

    trained = {name: p for name, p in loaded.vlm.named_parameters() if p.requires_grad}
    state = {f"weight.{name}": torch.empty(p.shape) for name, p in trained.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of there being no process group: that is meant
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(place)), no_dist=True)
    return {name: state[f"weight.{name}"] for name in trained}


@torch.no_grad()
def _fill(loaded: Loaded, state: dict[str, torch.Tensor], folder: Path) -> None:
    trained = {name: parameter for name, parameter in loaded.vlm.named_parameters() if parameter.requires_grad}
    missing = sorted(trained.keys() - state.keys())
    wrong = missing or sorted(name for name in trained if state[name].shape != trained[name].shape)
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} trained weights are missing or of another shape, first {wrong[0]}",
            str(folder),
            "the stage's job.json or what it started from was changed",
        )
    for name, parameter in trained.items():
        parameter.copy_(state[name])


def _save(weights: Path, loaded: Loaded, job: StageJob, stage: TrainStage) -> None:
    whole = training_model.whole_parts(loaded, stage)
    adapter: dict[str, torch.Tensor] = {}
    if stage.tune.adapters:
        adapter = {n: p for n, p in loaded.vlm.llm.named_parameters() if p.requires_grad}
    tensors: dict[str, native.Tensors] = {
        part: iter(list(loaded.vlm.get_submodule(part).named_parameters())) for part in whole
    }
    if stage.tune.tower == "lora":
        tensors["tower"] = tower_adapter.folded(loaded.vlm.tower, tensors["tower"])
    native.save(
        weights,
        loaded,
        template=template_of(job.model, stage).to_dict(),
        image_aspect=stage.image_aspect,
        image_background=derived.image_background(stage),
        tensors=tensors,
        adapter=(tune.adapter_config(loaded.vlm.llm), adapter) if adapter else None,
    )
