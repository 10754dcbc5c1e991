"""LLaVA of Megatron-Core as Pai-Megatron-Patch lays it out: one pickle for each tensor-parallel rank.

iter_0000001/mp_rank_0T/model_optim_rng.pt   latest_checkpointed_iteration.txt   the LLM's config and tokenizer

Megatron's tower ends with its last block and gives what that block gives. A tower of which an earlier layer is asked
for is written as deep as that layer; what is behind it, and the final norm that nothing reads, goes into `rest/`, so
that coming back loses nothing. Pipeline-parallel folders, which the original cannot make either, are refused.

Source: alibaba/Pai-Megatron-Patch@a098ca5 toolkits/model_checkpoints_convertor/llava, the specification, part B3
"""

from __future__ import annotations

import argparse
import io
import threading
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats import llava_text, manifest, megatron_model, pickles
from vlmrun.formats import megatron_names as table
from vlmrun.formats.base import LLM_CONFIG, How, Model, write_tensors
from vlmrun.formats.bitsandbytes import tensors_of
from vlmrun.formats.hf import PLACES, take_llm_files
from vlmrun.formats.megatron_model import refuse
from vlmrun.formats.native import write_files
from vlmrun.weights.lazy import Lazy, made
from vlmrun.weights.parallel import Makers
from vlmrun.weights.pickle_file import read_pickle

TRACKER, RANK, FILE, REST = "latest_checkpointed_iteration.txt", "mp_rank_", "model_optim_rng.pt", "rest"
# Nothing but their fields: the arguments of the run, and Transformer Engine's state of fp8.
_PLAIN = (argparse.Namespace, io.BytesIO)

__all__ = ["detect", "read", "refuse", "write"]


def detect(folder: Path) -> bool:
    """Whether there are files of ranks, here or in the iteration that the tracker names."""
    return folder.is_dir() and any(_iteration(folder).glob(f"{RANK}*/{FILE}"))


def _iteration(folder: Path) -> Path:
    tracker = folder / TRACKER
    if not tracker.is_file():
        return folder
    told = tracker.read_text("utf-8").strip()
    return folder / (f"iter_{int(told):07d}" if told.isdecimal() else "release")


def read(folder: Path, how: How) -> Model:
    """The pieces of all ranks, joined when a tensor is asked for."""
    found = manifest.read(folder, how)
    ranks = [_fused_names(_weights(path)) for path in _rank_files(folder)]
    model = manifest.start(found) if found else megatron_model.described(folder, ranks, how)
    shape = megatron_model.shape_of(model)
    entries = {entry.theirs: entry for entry in table.table(shape)}
    unknown = sorted({name for rank in ranks for name in rank} - entries.keys())
    torn = sorted(name for name in ranks[0] if any(name not in rank for rank in ranks))
    if unknown or torn:
        problems = [Problem(f"unknown tensor {name}", str(folder)) for name in unknown[:20]]
        raise CheckpointError(problems + [Problem(f"{name} is not on every rank", str(folder)) for name in torn[:20]])
    for name in ranks[0]:
        model.tensors |= _parts(entries[name], [rank[name] for rank in ranks])
    if (folder / REST).is_dir():
        model.tensors |= tensors_of(folder / REST)
    else:
        model.tensors |= megatron_model.never_read(model)
    take_llm_files(model, folder)
    if not found:
        llava_text.name_padding(model)
    return model


def _rank_files(folder: Path) -> list[Path]:
    paths = sorted(_iteration(folder).glob(f"{RANK}*/{FILE}"))
    names = [path.parent.name.removeprefix(RANK) for path in paths]
    if [f"{number:02d}" for number in range(len(names))] != names:
        raise CheckpointError(
            f"ranks {', '.join(names)} are not 00 to {len(names) - 1:02d}",
            str(folder),
            "pipeline-parallel checkpoints are not read; a missing rank's file must be copied again",
        )
    return paths


def _weights(path: Path) -> dict[str, torch.Tensor]:
    held = read_pickle(path, _PLAIN).get("model")
    if not isinstance(held, dict):
        raise CheckpointError("the file holds no `model`", str(path), "fetch or make it again")
    return {name: value for name, value in held.items() if not name.endswith("_extra_state")}


def _fused_names(rank: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Megatron's own layers keep their norms under other names than Transformer Engine's."""

    def renamed(name: str) -> str:
        for local, fused in table.LOCAL:
            if name.endswith(local):
                return name.removesuffix(local) + fused
        return name

    return {renamed(name): value for name, value in rank.items()}


def _parts(entry: table.Entry, pieces: list[torch.Tensor]) -> dict[str, Lazy]:
    """Ours that one of Megatron's holds."""
    parts = entry.rule.part(entry.rule.join([made(piece) for piece in pieces]))
    if entry.ours == (megatron_model.CLASS,):
        parts = [parts[0].view(parts[0].shape[-1:])]
    return dict(zip(entry.ours, parts, strict=True))


def write(model: Model, folder: Path, how: How) -> None:
    """One pickle for each rank, a few rows at a time."""
    shape = megatron_model.shape_of(model)
    rest = dict(model.tensors)
    ranks: list[dict[str, Any]] = [{} for _ in range(how.tp)]
    for entry in table.table(shape):
        if entry.ours[0] not in rest:
            continue
        ours = [rest.pop(name) for name in entry.ours]
        if entry.ours == (megatron_model.CLASS,):
            ours = [ours[0].view((1, 1, *ours[0].shape))]
        for rank, piece in zip(ranks, entry.rule.cut(entry.rule.fuse(ours), how.tp), strict=True):
            rank[entry.theirs] = piece
    about = {"args": megatron_model.arguments(model, how.tp), "checkpoint_version": 3.0, "iteration": 0}
    paths = [folder / f"iter_0000001/{RANK}{number:02d}" / FILE for number in range(how.tp)]
    tables = [about | {"model": rank | _extra(shape)} for rank in ranks]
    digests = _side_by_side(paths, tables)
    artifact.write_text(folder / TRACKER, "1")
    artifact.write_json(folder / "config.json", model.json[LLM_CONFIG])
    write_files(model, folder, {place: name for place, name in PLACES.items() if place != LLM_CONFIG})
    digests |= write_tensors(folder / REST, rest.items(), hashed=True)
    manifest.write(folder, "megatron", model, digests)


def _side_by_side(paths: list[Path], tables: list[dict[str, Any]]) -> dict[Path, str]:
    """Writes all files; gives their digests. When one fails, the others are given up."""
    stopped = threading.Event()
    with Makers() as makers:
        jobs = [makers.submit(pickles.save, path, table, stopped) for path, table in zip(paths, tables, strict=True)]
        try:
            for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                job.result()
            return {path: job.result() for path, job in zip(paths, jobs, strict=True)}
        except BaseException:
            stopped.set()
            raise


def _extra(shape: table.Shape) -> dict[str, None]:
    """What Transformer Engine keeps of fp8: nothing."""
    towers = ((table.LLM, shape.llm_layers), (table.TOWER, shape.tower_layers))
    return {
        f"{prefix}{table.LAYERS}{number}.{name}._extra_state": None
        for prefix, layers in towers
        for number in range(layers)
        for name in table.EXTRA
    }
