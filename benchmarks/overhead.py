"""What vlmrun's trainer adds to each optimizer step: `python -m benchmarks.overhead`.

Every contender is a process of its own (an engine leaves traces in its process), forked from a server that has only
imported. They take turns: while one trains for a few steps, the others wait.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.measure import QUIET, Table, Unsaved, parser, show
from vlmrun.config.job import StageJob

# Before the fork server imports torch and DeepSpeed.
_ENVIRONMENT = {**QUIET, "DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
_PRELOADED = ["deepspeed", "transformers.models.llama.modeling_llama", "transformers.models.siglip.modeling_siglip"]
_PRELOADED += ["peft", "vlmrun.train.setup"]

BARE, SAME, SAME_DEEPSPEED = (
    "bare torch loop",
    "bare torch loop, our loss and AdamW",
    "bare ZeRO-2 loop, our loss and AdamW",
)
_BARE_LOOPS = (BARE, "bare torch loop, again", SAME, SAME_DEEPSPEED)
# label -> overrides of the stage. The second bare loop shows what difference is noise.
CONTENDERS: dict[str, dict[str, Any]] = {
    BARE: {"engine": "plain"},
    "bare torch loop, again": {"engine": "plain"},
    SAME: {"engine": "plain"},
    "plain": {"engine": "plain"},
    "plain, loading its data": {"engine": "plain"},
    **{f"ZeRO-{zero}": {"zero": zero} for zero in range(2)},
    SAME_DEEPSPEED: {"zero": 2},
    **{f"ZeRO-{zero}": {"zero": zero} for zero in range(2, 4)},
}
# The loop that computes the same, with the same engine.
_BESIDE = {"plain": SAME, "ZeRO-2": SAME_DEEPSPEED}
_N_BATCHES = 8  # kept in memory and taken in turn
_WARM_UP = 3  # steps: the first ones allocate, and hold the tune proof

_SMALL = {
    "llm": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_key_value_heads": 4},
    "tower": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8},
}


_LARGE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}


@dataclass(frozen=True)
class Size:
    """A model to train: overrides of the recipe, how many steps make a turn, and who takes part."""

    overrides: list[str]
    steps: int
    contenders: tuple[str, ...] = tuple(CONTENDERS)


SIZES = {
    "micro": Size(["stage.instruct.global_batch=16", "stage.instruct.micro_batch=16"], 12),
    "small": Size(
        [
            *("model/llm=pico", "model/tower=pico", "stage.instruct.global_batch=8", "stage.instruct.micro_batch=8"),
            *(f"model.{part}.config.{key}={value}" for part, keys in _SMALL.items() for key, value in keys.items()),
        ],
        3,
    ),
    # SmolLM2's shape; each contender holds 2.5 to 4 GB. Asked for by name.
    "135m": Size(
        [
            *("model/llm=pico", "model/tower=pico", "stage.instruct.global_batch=16", "stage.instruct.micro_batch=16"),
            *(f"model.llm.config.{key}={value}" for key, value in _LARGE.items()),
        ],
        1,
        (BARE, SAME, "plain", SAME_DEEPSPEED, "ZeRO-2"),
    ),
}
_BY_DEFAULT = ("micro", "small")


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=9, help="turns each contender gets")
    options.add_argument("--model", choices=SIZES, action="append", help="measure this one only")
    chosen = options.parse_args()
    os.environ.update(_ENVIRONMENT)
    rounds, steps = (2, 1) if chosen.quick else (chosen.rounds, None)
    names = chosen.model or (["micro"] if chosen.quick else list(_BY_DEFAULT))
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            jobs = make_jobs(SIZES[name], Path(scratch) / name)
            rows += measure(name, jobs, rounds, steps or SIZES[name].steps)
    title = f"trainer overhead per optimizer step, medians of {rounds} interleaved rounds, one rank, fp32, one thread"
    show(Table(title, _HEADER, rows, _NOTES), chosen.json)


_HEADER = [
    "model",
    "contender",
    "ms/step",
    "overhead ms",
    "overhead %",
    "cpu ms",
    "cpu overhead ms",
    "added %",
]
_NOTES = [
    "In every loop: forward, token-mean cross-entropy, backward, clipping at 1.0, AdamW, one look at the loss; the\n"
    "same model, weights and batches, the LLM and the connector trained. Batches were collated before, and are taken\n"
    "from memory.",
    "Added by vlmrun, and measured here: seeding each step, counting tokens, checks that loss and gradient norm are\n"
    "finite, learning rates, a row of metrics.jsonl, progress lines, watching for signals. Added by DeepSpeed in the\n"
    "ZeRO rows: its hooks, partitions and one-rank collectives.",
    "Not in it: start-up, the tune proof (first update only), checkpoints, other trackers. One row adds reading,\n"
    "tokenising and collating in the training process (workers: 0); with workers that runs beside the training.",
    "overhead: median over rounds of the difference to the bare torch loop's turn in the same round. cpu: processor\n"
    "time of the process, which other work on the machine disturbs less.",
    "The bare torch loop is what one would write: all logits, torch.optim.AdamW. vlmrun saves by its loss and AdamW.\n"
    "added: processor time that its trainer takes beyond the bare loop that computes the same with the same engine.",
]


def make_jobs(size: Size, folder: Path) -> dict[str, StageJob]:
    """A train job for each contender, out of the smoke recipe, and the pictures it needs."""
    from vlmrun.cli import train as verbs
    from vlmrun.run import pipeline
    from vlmrun.stages import prepare

    jobs: dict[str, StageJob] = {}
    recipe = ["+recipe=smoke", "stage.instruct.init_from=null", f"output={folder}", *size.overrides]
    run = pipeline.prepare(verbs.compose(recipe, []))
    stages = {item.name: item for item in run.planned}
    prepare.execute(pipeline.job_of(run, stages["shapes"]))
    job = pipeline.job_of(run, stages["instruct"])
    for number, label in enumerate(size.contenders):
        stage = job.stage.model_copy(update=CONTENDERS[label])
        jobs[label] = job.model_copy(update={"stage": stage, "folder": str(folder / str(number))})
        jobs[label].path.mkdir()
    return jobs


def measure(model: str, jobs: dict[str, StageJob], rounds: int, steps: int) -> list[list[Any]]:
    """Rows of one model."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    channels: dict[str, Connection] = {}
    try:
        for label, job in jobs.items():
            channels[label], theirs = context.Pipe()
            context.Process(target=train, args=(label, job.to_json(), theirs), daemon=True).start()
            theirs.close()  # or the contender's end would not be noticed
            _turn(channels[label], _WARM_UP)
        turns = [{label: _turn(channel, steps) for label, channel in channels.items()} for _ in range(rounds)]
    finally:
        for channel in channels.values():
            channel.close()  # what ends a contender
    return [_row(model, label, turns) for label in jobs]


def _turn(channel: Connection, steps: int) -> tuple[float, float]:
    """Lets a contender train for some steps: median milliseconds of wall and of processor time."""
    channel.send(steps)
    wall, cpu = channel.recv()
    return wall, cpu


def _row(model: str, label: str, turns: list[dict[str, tuple[float, float]]]) -> list[Any]:
    wall, cpu = ([turn[label][kind] for turn in turns] for kind in (0, 1))
    more, more_cpu = ([turn[label][kind] - turn[BARE][kind] for turn in turns] for kind in (0, 1))
    bare = statistics.median(turn[BARE][0] for turn in turns)
    extra, extra_cpu = statistics.median(more), statistics.median(more_cpu)
    numbers = (statistics.median(wall), extra, 100 * extra / bare, statistics.median(cpu), extra_cpu)
    shown = [round(number, 2) for number in numbers]
    if label == BARE:
        return [model, label, shown[0], None, None, shown[3], None, None]
    if label not in _BESIDE:
        return [model, label, *shown, None]
    added = statistics.median(100 * (turn[label][1] / turn[_BESIDE[label]][1] - 1) for turn in turns)
    return [model, label, *shown, round(added, 1)]


def train(label: str, text: str, channel: Connection) -> None:
    """A contender: builds its model and trains whenever it is told to. Runs in a process of its own."""
    from vlmrun.names import METRICS
    from vlmrun.train import dist, loop, model, optim
    from vlmrun.train.engine import create
    from vlmrun.train.log import Metrics
    from vlmrun.train.plan import Plan
    from vlmrun.train.progress import Lines

    job = StageJob.model_validate_json(text)
    stage: Any = job.stage
    with dist.session(job.hardware):
        config = model.deepspeed_config(job, stage)
        loaded = model.load(job, stage, config)
        paced = _paced(channel, _source(job, loaded, live="loading" in label))
        if label in _BARE_LOOPS:
            _bare(loaded.vlm, paced, stage.optim, config if label == SAME_DEEPSPEED else None, same="our" in label)
            return
        engine = create(loaded.vlm, optim.groups(loaded.vlm, stage.optim), stage, job.hardware, config)
        endless = 10**6
        plan = Plan(
            name="overhead",
            stage=stage,
            batches=paced,
            steps=endless,
            done=0,
            epoch=lambda step: step / endless,
            rate=optim.schedule(stage.optim.model_copy(update={"warmup_ratio": 0.0}), endless),
            saver=Unsaved(),
            evaluate=lambda *_: False,
            skipped=lambda _: None,
            trackers=[Metrics(job.path / METRICS, 0), Lines(job.name, 0, endless)],
        )
        loop.run(engine, plan)


def _source(job: StageJob, loaded: Any, *, live: bool) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The stage's batches: read while training, or the first few of them from memory, again and again."""
    from vlmrun.data import templates
    from vlmrun.data.collate import Collator
    from vlmrun.data.encoder import Encoder
    from vlmrun.data.images.transform import ImageTransform
    from vlmrun.data.loader import Reading, batches
    from vlmrun.data.records import open_datasets
    from vlmrun.data.sampler import Schedule

    stage: Any = job.stage
    encoder = Encoder(
        template=templates.get(job.model.template),
        tokenizer=loaded.tokenizer,
        image_transform=ImageTransform(loaded.preprocessor),
        aspect=stage.image_aspect,
        image_tokens=loaded.vlm.image_tokens,
        max_length=job.model.max_length,
    )
    dataset = open_datasets(job.data, stage.data, encoder=encoder, skipped=None, folder=job.path / "index")
    cut = {"global_batch": stage.global_batch, "micro_batch": stage.micro_batch}
    schedule = Schedule(len(dataset), **cut, ranks=1, epochs=1000, max_steps=None, seed=stage.seed)
    collator = Collator(loaded.tokenizer.pad_token_id, loaded.vlm.image_tokens, loaded.vlm.image_size)
    found = batches(dataset, schedule, collator, rank=0, first_step=0, reading=Reading(0))
    if live:
        return found  # a thousand epochs: it does not end
    kept = list(itertools.islice(found, _N_BATCHES))
    return ((step, kept[step % _N_BATCHES][1]) for step in itertools.count())


def _paced(channel: Connection, source: Iterator[Any]) -> Iterator[Any]:
    """Hands on as many batches as each message asks for, and answers with the median time from batch to batch.

    Whoever iterates does a whole step before asking for the next batch, so this needs no hook in the loop measured.
    """
    while True:
        try:
            steps = channel.recv()
        except EOFError:  # the benchmark is over
            return
        wall, cpu = [], []
        for _ in range(steps):
            began, busy = time.perf_counter(), time.process_time()
            yield next(source)
            wall.append(1000 * (time.perf_counter() - began))
            cpu.append(1000 * (time.process_time() - busy))
        channel.send((statistics.median(wall), statistics.median(cpu)))


def _bare(
    vlm: Any,
    batches: Iterator[tuple[int, list[dict[str, Any]]]],
    optim: Any,
    config: dict[str, Any] | None,
    *,
    same: bool,
) -> None:
    """What one would write without vlmrun: in PyTorch alone or, with a configuration, around DeepSpeed's engine.

    Args:
        same: with vlmrun's loss and kernel of AdamW, so that only the trainer differs.
    """
    import torch
    from torch.nn.functional import cross_entropy

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vlm = vlm

        def forward(self, batch: dict[str, Any]) -> torch.Tensor:
            given = batch["input_ids"], batch["attention_mask"], batch["pixels"]
            if same:
                found = self.vlm(*given, labels=batch["labels"])
                return found.loss_sum / found.n_supervised
            logits = self.vlm(*given).logits
            return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

    model: Any = Loss().train()
    trained = [parameter for parameter in vlm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=optim.lr, betas=tuple(optim.betas), weight_decay=optim.weight_decay, fused=same or None
    )
    if config is None:
        for _, (batch,) in batches:
            loss = model(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, optim.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return
    from vlmrun.train.engine.deepspeed import quiet, start_deepspeed

    with quiet():
        engine, *_ = start_deepspeed().initialize(model=model, optimizer=optimizer, config=config)
    for _, (batch,) in batches:
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
        loss.item()


if __name__ == "__main__":
    main()
