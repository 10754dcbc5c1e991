"""How many ranks a launch has, and the batch that follows."""

from __future__ import annotations

import re

from vlmrun.errors import Problem
from vlmrun.importers.launch import Launcher
from vlmrun.importers.meaning import accelerate
from vlmrun.importers.meaning.draft import Draft, Setting
from vlmrun.importers.shell import marks

_FIX = "say how many GPUs a node has: --gpus 8"


def ranks(draft: Draft, batch_options: dict[str, str]) -> None:
    """hardware.nodes, ranks_per_node and launcher, from the chain of launchers and #SBATCH lines."""
    chain = {link.name: link for link in draft.launch.chain}
    slurm = chain.get("srun") or Launcher("srun", ())
    nodes = _whole(slurm.value("--nodes", "-N") or batch_options.get("nodes") or batch_options.get("N"))
    per_node = None
    if "torchrun" in chain:
        link = chain["torchrun"]
        nodes = _whole((link.value("--nnodes") or "").split(":")[-1]) or nodes
        per_node = _whole(link.value("--nproc_per_node", "--nproc-per-node") or "1")
        if restarts := _whole(link.value("--max_restarts", "--max-restarts")):
            draft.settings["hardware.max_restarts"] = Setting("hardware.max_restarts", restarts, "--max_restarts")
    elif "accelerate" in chain:
        draft.accelerate = accelerate.read(draft, chain["accelerate"])
        nodes = _whole(draft.accelerate.get("num_machines")) or nodes
        total = _whole(draft.accelerate.get("num_processes"))
        per_node = total // (nodes or 1) if total else None
    elif "deepspeed" in chain:
        link = chain["deepspeed"]
        nodes = _whole(link.value("--num_nodes")) or nodes
        per_node = _whole(link.value("--num_gpus")) or _included(link.value("--include", "-i"))
        per_node = per_node or _visible(draft.launch.command.env.get("CUDA_VISIBLE_DEVICES"))
        if hostfile := link.value("--hostfile", "-H"):
            draft.settings["hardware.hostfile"] = Setting("hardware.hostfile", hostfile, "--hostfile")
    elif "srun" in chain:
        per_node = _whole(slurm.value("--ntasks-per-node") or batch_options.get("ntasks-per-node"))
    elif not chain:
        per_node = 1
    per_node = per_node or _gres(batch_options) or draft.options.gpus
    if per_node is None:
        where = f"{draft.launch.command.file}, line {draft.launch.command.line}"
        draft.problems.append(Problem("how many GPUs the launcher finds on a node is not known", where, _FIX))
        per_node = 1
    source = (
        "--gpus"
        if per_node == draft.options.gpus
        else f"line {draft.launch.command.line}: {draft.launch.command.argv[0]}"
    )
    draft.settings["hardware.nodes"] = Setting("hardware.nodes", nodes or 1, source)
    draft.settings["hardware.ranks_per_node"] = Setting("hardware.ranks_per_node", per_node, source)
    if (nodes or 1) * per_node > 1 and draft.launch.chain:
        name = draft.launch.chain[-1].name
        launcher = name if name in ("torchrun", "deepspeed", "srun") else "torchrun"
        draft.settings["hardware.launcher"] = Setting("hardware.launcher", launcher, source)


def sizes(draft: Draft) -> None:
    """micro_batch and global_batch of transformers' two flags and the ranks."""
    micro = draft.number_of("per_device_train_batch_size", int)
    steps = draft.number_of("gradient_accumulation_steps", int)
    for name, value in (("per_device_train_batch_size", micro), ("gradient_accumulation_steps", steps)):
        if value is not None and value < 1:
            draft.problems.append(Problem(f"--{name} {value}: at least one", draft.where(name), "correct the script"))
    if micro is None or steps is None or min(micro, steps) < 1:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            draft.settle(name, "unknown", "the batch is not known")
        return
    total = draft.settings["hardware.nodes"].value * draft.settings["hardware.ranks_per_node"].value
    draft.set("stage.micro_batch", micro, "per_device_train_batch_size")
    draft.set("stage.global_batch", micro * steps * total, "gradient_accumulation_steps",
              note=f"{micro} x {steps} x {total} ranks")  # fmt: skip
    if "average_tokens_across_devices" not in draft.given:
        draft.set("stage.loss", "micro_mean", note="the Trainer of transformers 4 averages the means of micro batches")
    elif draft.boolean("average_tokens_across_devices"):
        draft.set("stage.loss", "token_mean", "average_tokens_across_devices")
    else:
        why = "upstream every rank weighs the same"
        draft.differ("average_tokens_across_devices", "stage.loss", "token_mean", why)


def _whole(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"0*[1-9]\d{0,5}", text) and not marks.is_unknown(text) else None


def _included(text: str | None) -> int | None:
    """`localhost:0,1,3`: three."""
    if not text or marks.is_unknown(text):
        return None
    return sum(len(part.partition(":")[2].split(",")) for part in text.split("@")[:1]) if ":" in text else None


def _visible(text: str | None) -> int | None:
    return len(text.split(",")) if text and re.fullmatch(r"\d+(,\d+)*", text) else None


def _gres(options: dict[str, str]) -> int | None:
    for key in ("gpus-per-node", "gres", "G", "gpus"):
        found = re.search(r"(\d+)$", options.get(key, ""))
        if found:
            return int(found[1])
    return None
