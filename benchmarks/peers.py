"""vlmrun's trainer beside HF Trainer and TRL, on transformers' native LLaVA: `python -m benchmarks.peers`.

One model, the same first weights, the same batches of made-up tokens and pictures: what differs is the trainer. Every
contender is a process of its own; they take turns, round by round. TRL comes with `make bench-peers`, which installs
the extra `bench`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import QUIET, Table, Unsaved, parser, show
from vlmrun.run.argv import OF_RANKS

VLMRUN = "vlmrun, plain engine"
CONTENDERS = (VLMRUN, "vlmrun, ZeRO-2", "HF Trainer", "TRL SFTTrainer")
_BATCH, _LENGTH, _SUPERVISED = 8, 256, 0.25
_STEPS, _WARM_UP = 10, 3
_RATE = 1e-4
_VOCABULARY = 32_000
_IMAGE = _VOCABULARY - 1  # what LLaVA marks picture positions with; an ordinary id that no text of ours has
_LLM = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
_TOWER = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
_N_PATCHES = 64
_HEADER = [
    "contender",
    "ms/step",
    "of vlmrun's",
    "cpu ms",
    "of its cpu ms",
    "peak MB",
    "of its peak",
    "loss, first",
    "loss, last",
]
_NOTES = [
    f"A Llama of 6 layers, width 256, {_VOCABULARY} tokens; a CLIP tower of 4 layers (frozen), a two-layer projector.\n"
    f"Batches of {_BATCH} sequences of {_LENGTH} tokens, {_N_PATCHES} an image, {_SUPERVISED:.0%} supervised.\n"
    "AdamW as each trainer has it by default (fused), clipping at 1.0, constant rate, fp32, one rank, one thread.\n"
    f"Medians over steps after the first {_WARM_UP} of every round. cpu: processor time of the process, which other\n"
    "work on the machine disturbs less.",
    "peak: memory of the whole process. The losses show that all do the same work: the loss is the mean over the\n"
    "supervised tokens of a batch in each of them.",
]


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--contender", choices=CONTENDERS, help=None)  # what a child is told
    chosen = options.parse_args()
    os.environ.update(QUIET | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"})
    if chosen.contender:
        _train(chosen.contender, 2 if chosen.quick else _STEPS)
        return
    names = [name for name in CONTENDERS if not name.startswith("TRL") or find_spec("trl") is not None]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(1 if chosen.quick else chosen.rounds):
        for name in names:
            turns[name].append(_turn(name, quick=chosen.quick))
    notes = _NOTES if len(names) == len(CONTENDERS) else [*_NOTES, "TRL is not installed: pip install -e '.[bench]'"]
    rows = [_row(name, turns[name], turns[VLMRUN]) for name in names]
    show(Table("trainers side by side, one model and the same batches", _HEADER, rows, notes), chosen.json)


def _turn(name: str, *, quick: bool) -> dict[str, Any]:
    """One round of a contender, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.peers", "--contender", name, *(["--quick"] if quick else [])]
    # Whoever started us as a rank did not mean the contenders: accelerate believes LOCAL_RANK alone.
    env = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(name: str, turns: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[Any]:
    found: list[Any] = [name]
    for key in ("ms", "cpu_ms", "peak_mb"):
        mine, first = (statistics.median(turn[key] for turn in several) for several in (turns, ours))
        found += [round(mine), round(mine / first, 2)]
    losses = turns[0]["losses"]
    return [*found, losses[0], losses[-1]]


def _train(name: str, steps: int) -> None:
    """A contender: trains, and prints what it took."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = _vlmrun if name.startswith("vlmrun") else _transformers
        losses = run(name, steps, clock, Path(folder))
    milliseconds, cpu = (1000 * statistics.median(seconds[_WARM_UP:] or seconds) for seconds in clock.seconds)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    print(json.dumps({"ms": milliseconds, "cpu_ms": cpu, "peak_mb": peak, "losses": losses}))


class _Clock:
    """Seconds from the end of one step to the end of the next, and those of the processor."""

    def __init__(self) -> None:
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self._last: tuple[float, float] | None = None

    def step(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            for kept, end, begin in zip(self.seconds, now, self._last, strict=True):
                kept.append(end - begin)
        self._last = now


def _items(n: int) -> list[dict[str, Any]]:
    """Samples as native LLaVA takes them: a picture in front, the last tokens supervised."""
    import torch

    made = torch.Generator().manual_seed(0)
    found = []
    for _ in range(n):
        text = torch.randint(10, _VOCABULARY - 10, (_LENGTH - _N_PATCHES,), generator=made)
        ids = torch.cat([torch.full((_N_PATCHES,), _IMAGE), text])
        labels = torch.full_like(ids, -100)
        labels[-round(_LENGTH * _SUPERVISED) :] = ids[-round(_LENGTH * _SUPERVISED) :]
        edge = _TOWER["image_size"]
        found.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": labels,
                "pixel_values": torch.randn(3, edge, edge, generator=made),
            }
        )
    return found


def _vlm() -> Any:
    """vlmrun's model, with seeded weights; the other contenders' are copied from it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from vlmrun.model.connectors.mlp import MLP
    from vlmrun.model.towers.clip import Clip
    from vlmrun.model.vlm import VLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**_LLM))
    tower = Clip(config=dict(_TOWER), dtype=torch.float32, attention="sdpa", layers=[-2])
    return VLM(llm, tower, MLP(tower.hidden_dim, int(_LLM["hidden_size"]), 2))


def _vlmrun(name: str, steps: int, clock: _Clock, folder: Path) -> list[float]:
    import torch

    from vlmrun.cli import train
    from vlmrun.config.derived import accumulation
    from vlmrun.model import tune
    from vlmrun.model.head import Head
    from vlmrun.train import dist, loop, optim
    from vlmrun.train.engine import create
    from vlmrun.train.plan import Plan
    from vlmrun.zero import config as zero

    engine = "plain" if name == VLMRUN else "deepspeed"
    changes = [f"engine={engine}", "zero=2", f"global_batch={_BATCH}", f"micro_batch={_BATCH}", "log_steps=1"]
    changes += [f"optim.{key}" for key in (f"lr={_RATE}", "connector_lr=null", "weight_decay=0.0", "max_grad_norm=1.0")]
    changes += ["optim.betas=[0.9,0.999]", "optim.schedule=constant", "optim.warmup_ratio=0.0"]
    config = train.compose(["+recipe=smoke", *(f"stage.instruct.{change}" for change in changes)], [])
    stage: Any = config.stage["instruct"]
    assert accumulation(stage, config.hardware) == 1
    with dist.session(config.hardware):
        vlm = _vlm()
        tune.apply(vlm, stage.tune, stage.lora)
        vlm.head = Head(vlm.llm, stage.loss_head, stage.loss_chunk)
        described = None
        if engine == "deepspeed":
            described = zero.deepspeed_config(stage, config.hardware, hidden_dim=int(_LLM["hidden_size"]))
        made = create(vlm, optim.groups(vlm, stage.optim), stage, config.hardware, described)
        items = _items(_BATCH * steps)
        rows = _Rows(clock)
        plan = Plan(
            name="peers",
            stage=stage,
            batches=((step, [_batch(items[step * _BATCH :][:_BATCH])]) for step in range(steps)),
            steps=steps,
            done=0,
            epoch=lambda step: step / steps,
            rate=lambda _: 1.0,
            saver=Unsaved(),
            evaluate=lambda *_: False,
            skipped=lambda _: None,
            trackers=[rows],
        )
        vlm.train()
        vlm.tower.eval()
        torch.manual_seed(0)
        loop.run(made, plan)
    return rows.losses


class _Rows:
    """The one who is told vlmrun's numbers."""

    def __init__(self, clock: _Clock) -> None:
        self.losses: list[float] = []
        self._clock = clock

    def track(self, row: Any) -> None:
        self.losses.append(row.loss)
        self._clock.step()

    def close(self) -> None:
        pass


def _batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples as vlmrun's collator gives them."""
    import torch

    from vlmrun.ids import IMAGE_TOKEN

    ids = torch.stack([item["input_ids"] for item in items])
    return {
        "input_ids": ids.masked_fill(ids == _IMAGE, IMAGE_TOKEN),
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "labels": torch.stack([item["labels"] for item in items]),
        "pixels": torch.stack([item["pixel_values"] for item in items]),
        "ids": [str(number) for number in range(len(items))],
        "skipped": [],
    }


def _transformers(name: str, steps: int, clock: _Clock, folder: Path) -> list[float]:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Told(TrainerCallback):
        def on_step_end(self, *_args: Any, **_rest: Any) -> None:
            clock.step()

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": _BATCH,
        "max_steps": steps,
        "learning_rate": _RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    items: Any = _items(_BATCH * steps)
    shared: dict[str, Any] = {"model": _native(), "data_collator": collate, "callbacks": [Told()]}
    if name == "HF Trainer":
        trainer: Any = _in_order(Trainer)(args=TrainingArguments(**arguments), train_dataset=items, **shared)
    else:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        columns = [{key: value.tolist() for key, value in item.items()} for item in items]
        items = Dataset.from_list(columns).with_format("torch")  # TRL takes nothing else

        config = SFTConfig(
            **arguments,
            bf16=False,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        )
        trainer = _in_order(SFTTrainer)(args=config, train_dataset=items, processing_class=_tokenizer(), **shared)
    trainer.train()
    return [round(entry["loss"], 6) for entry in trainer.state.log_history if "loss" in entry]


def _in_order(trainer: Any) -> Any:
    """The same trainer, which takes samples as they come: all contenders see the same batches."""
    from torch.utils.data import SequentialSampler

    class InOrder(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset or self.train_dataset)

    return InOrder


def _native() -> Any:
    """transformers' LLaVA with the weights of `_vlm`, its tower frozen."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vlm = _vlm()
    config = LlavaConfig(
        text_config=LlamaConfig(**_LLM),
        vision_config=CLIPVisionConfig(**_TOWER),
        image_token_index=_IMAGE,
        image_seq_length=_N_PATCHES,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(vlm.llm.model.state_dict())
    model.lm_head.load_state_dict(vlm.llm.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(vlm.tower.model.state_dict(), strict=False)
    projector = model.model.multi_modal_projector
    projector.linear_1.load_state_dict(vlm.connector.layers[0].state_dict())
    projector.linear_2.load_state_dict(vlm.connector.layers[2].state_dict())
    model.model.vision_tower.requires_grad_(False)
    return model


def _tokenizer() -> Any:
    """TRL wants one; no text is tokenised."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "<pad>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


if __name__ == "__main__":
    main()
