"""Training speed on a GPU: `python -m benchmarks.gpu [--model 7b]`.

LLaVA models with random weights and published shapes, at the lengths of LLaVA's data: connector pretraining and LoRA,
as `vlmrun` runs them, beside what `vlmrun plan` says of memory. Without a GPU only --quick runs: a tiny model, to show
that this program does.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.measure import QUIET, Table, parser, show, vlmrun
from vlmrun.hardware import gpus
from vlmrun.selftest import probe
from vlmrun.selftest.probe import Machine

_STEPS, _WARM_UP = 12, 4
_CAPTION, _TALK = 6, 40  # words of an answer, five tokens each: the tokenizer knows bytes


@dataclass(frozen=True)
class Size:
    """A model: configs of its parts, and what is trained at a time."""

    llm: dict[str, Any]
    tower: dict[str, Any]
    batches: dict[str, int]  # micro batch of each stage
    tower_option: str = "clip_l_336"


_CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
}  # fmt: skip
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": False}


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return _LLAMA | {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
    }  # fmt: skip


SIZES = {
    "tiny": Size(_llama(64, 128, 2, 4, 4, 1000), _CLIP | {"hidden_size": 32, "intermediate_size": 64,
                 "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}, {"pretrain": 2, "lora": 2}),
    "0.5b": Size(_llama(896, 4864, 24, 14, 2, 151936), _CLIP, {"pretrain": 32, "lora": 16}),
    "7b": Size(_llama(4096, 11008, 32, 32, 32, 32000), _CLIP, {"pretrain": 16, "lora": 8}),
    "8b bunny": Size(_llama(4096, 14336, 32, 32, 8, 128256), _SIGLIP, {"pretrain": 16, "lora": 8},
                     "siglip_so400m_384"),
}  # fmt: skip
_HEADER = [
    "model", "stage", "engine", "micro batch", "tokens a sample", "ms/step", "tokens/s", "samples/s", "MFU %",
    "peak GiB", "planned GiB",
]  # fmt: skip
_NOTES = [
    "tokens: real ones, image tokens included. MFU: forward and backward passes as `vlmrun plan` counts them, without\n"
    "what gradient checkpointing repeats, of the maker's dense bf16 peak. peak: of the GPU, by nvidia-smi, the CUDA\n"
    "context included. Random weights and made-up text and images; medians of the steps after the first four.",
]


@dataclass
class Bench:
    """One run of all that was asked for."""

    machine: Machine
    folder: Path
    steps: int
    engine: str
    rows: list[list[Any]] = field(default_factory=list)


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--model", choices=SIZES, action="append", help="measure this one only")
    chosen = options.parse_args()
    os.environ.update(QUIET)
    machine = probe.look()
    if not machine.n_gpus and not chosen.quick:
        sys.exit(f"error: {machine.trouble}\n  fix: --quick shows that the program runs")
    names = chosen.model or (["tiny"] if chosen.quick else [name for name in SIZES if name != "tiny"])
    engine = "deepspeed" if find_spec("deepspeed") else "plain"
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(machine, Path(scratch), 6 if chosen.quick else _STEPS, engine)
        for name in names:
            _measured(bench, name)
    where = f"{machine.n_gpus} x {machine.gpu}" if machine.n_gpus else "a CPU, which shows that this runs"
    title = f"training on {where}, torch {machine.torch}, CUDA {machine.cuda}"
    show(Table(title, _HEADER, bench.rows, _NOTES), chosen.json)


def _measured(bench: Bench, name: str) -> None:
    size = SIZES[name]
    parts = bench.folder / "parts"
    _write_parts(parts, size, "cuda" if bench.machine.n_gpus else "cpu")
    edge = int(size.tower["image_size"])
    for stage, data, words in (("pretrain", "llava_558k", _CAPTION), ("lora", "llava_mix665k", _TALK)):
        n_samples = size.batches[stage] * (bench.steps + 1)
        records = _write_data(bench.folder / data, n_samples, words, edge)
        overrides = _overrides(bench, size, stage, parts, (data, records))
        planned = _plan(bench, overrides)
        peak = _run(bench, overrides)
        bench.rows.append(_row(bench, name, stage, planned, peak))
    shutil.rmtree(parts)


def _overrides(bench: Bench, size: Size, stage: str, parts: Path, data: tuple[str, Path]) -> list[str]:
    name, records = data
    batch, gpu = size.batches[stage], bench.machine.table_name
    precision = "bf16" if bench.machine.n_gpus else "fp32"
    given = {
        "max_steps": bench.steps, "epochs": 1.0, "global_batch": batch, "micro_batch": batch,
        "engine": bench.engine, "zero": 2 if bench.engine == "deepspeed" else 0, "save_steps": 1000, "workers": 4,
    }  # fmt: skip
    return [
        "+recipe=llava15_7b_lora", f"only=[{stage}]", f"output={bench.folder / 'outputs'}", "tracking=[]",
        f"model/tower={size.tower_option}", f"model.llm.path={parts / 'llm'}", "~model.llm.tokens",
        f"model.tower.path={parts / 'tower'}", f"data.{name}.annotations={records}",
        f"data.{name}.images={records.parent / 'images'}", "hardware=cpu", f"hardware.gpu={gpu}",
        f"hardware.precision={precision}", *([f"stage.{stage}.init_from=null"] if stage == "lora" else []),
        *(f"stage.{stage}.{key}={value}" for key, value in given.items()),
    ]  # fmt: skip


def _plan(bench: Bench, overrides: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [*vlmrun(), "plan", *overrides, "--json"], cwd=bench.folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"vlmrun plan: {done.stderr[-2000:]}")
    (found,) = json.loads(done.stdout)["stages"]
    planned: dict[str, Any] = found
    return planned


def _run(bench: Bench, overrides: list[str]) -> float | None:
    """Runs the stage; gives the most bytes of the GPU that were in use."""
    shutil.rmtree(bench.folder / "outputs", ignore_errors=True)
    watch = _Watch() if bench.machine.n_gpus else None
    done = subprocess.run([*vlmrun(), *overrides], cwd=bench.folder, capture_output=True, text=True, check=False)
    peak = None if watch is None else watch.end()
    if done.returncode:
        raise RuntimeError(f"vlmrun: {done.stderr[-3000:]}")
    return peak


class _Watch:
    """The most memory of the first GPU in use, asked for five times a second."""

    _COMMAND = ("nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200")

    def __init__(self) -> None:
        self._peak = 0
        self._process = subprocess.Popen(self._COMMAND, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._peak = max(self._peak, int(line) << 20)

    def end(self) -> float:
        self._process.kill()
        self._thread.join()
        self._process.wait()
        return float(self._peak)


def _row(bench: Bench, name: str, stage: str, planned: dict[str, Any], peak: float | None) -> list[Any]:
    (metrics,) = (bench.folder / "outputs").rglob("metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    measured = lines[_WARM_UP:] if len(lines) > _WARM_UP else lines
    seconds = statistics.median(line["seconds"] for line in measured)
    tokens = statistics.mean(line["tokens"] for line in measured)
    samples = measured[0]["samples"]
    work = planned["work"]["per_sample"]
    peak_flops = gpus.find(bench.machine.table_name).peak_flops_bf16
    used = (work["forward"] + work["backward"]) * samples / seconds
    gib = 2**30
    return [
        name, stage, bench.engine, SIZES[name].batches[stage], round(tokens / samples, 1), round(1000 * seconds, 1),
        round(tokens / seconds), round(samples / seconds, 2),
        round(100 * used / peak_flops, 1) if bench.machine.n_gpus else None,
        None if peak is None else round(peak / gib, 2), round(planned["memory"]["total_bytes"] / gib, 2),
    ]  # fmt: skip


def _write_parts(folder: Path, size: Size, device: str) -> None:
    """Folders of an LLM and a tower with random weights in bf16."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    for part, values, made in (("llm", size.llm, AutoModelForCausalLM), ("tower", size.tower, AutoModel)):
        config = AutoConfig.for_model(**values)
        with torch.device(device):
            model = made.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder / part)
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    models.write_tokenizer(folder / "llm")
    edge, mean = int(size.tower["image_size"]), [0.5] * 3
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": edge}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": edge, "width": edge}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean, "image_std": mean,
    }  # fmt: skip
    if size.tower["model_type"] == "siglip_vision_model":
        preprocessor |= {"image_processor_type": "SiglipImageProcessor", "size": {"height": edge, "width": edge}}
    (folder / "tower" / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def _write_data(folder: Path, n_samples: int, words: int, edge: int) -> Path:
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(min(n_samples, 64)):
        pixels = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((edge * 4 // 3, edge)).save(folder / "images" / f"{number}.jpg")
    known = ["red", "green", "blue", "circle", "square", "a", "the", "is", "of", "left"]
    records = [
        {"id": str(number), "image": f"{number % 64}.jpg", "conversations": [
            {"from": "human", "value": "<image>\nDescribe the image."},
            {"from": "gpt", "value": " ".join(draw.choice(known, words))}]}
        for number in range(n_samples)
    ]  # fmt: skip
    (folder / "records.json").write_text(json.dumps(records))
    return folder / "records.json"


if __name__ == "__main__":
    main()
