"""The recipe of Pai-Megatron-Patch: the 23 arguments of its script, and shrunk on one, two and four ranks."""

from pathlib import Path

import pytest
import yaml

from tests.integration import ranks as forked
from tests.integration.jobs import compare, write_records
from tests.pico import pico_tokenizer
from vlmrun import graph
from vlmrun.checks import rules as checks
from vlmrun.config import derived
from vlmrun.config.compose import compose
from vlmrun.config.job import JOB_FILE
from vlmrun.config.validate import validate
from vlmrun.data.prepare.write_shards import Layout, write
from vlmrun.data.shards import metadata
from vlmrun.run import identity, pipeline

RECIPE = "pai_llava_mistral_7b"
TOKENS = ["[INST]", "[/INST]", "</s>"]
FLAGS = yaml.safe_load((Path(__file__).parents[1] / "parity" / "pai_flags.yaml").read_text("utf-8"))


def composed(*overrides):
    found = compose([f"+recipe={RECIPE}", *overrides])
    run, problems = validate(found.tree, found.problems)
    assert [*found.problems, *problems] == []
    return run


VALUES = {
    "MODEL_SIZE": lambda run, stage: run.model.llm.arguments["path"].endswith("Mistral-7B-Instruct-v0.3"),
    "BATCH_SIZE": lambda run, stage: stage.micro_batch,
    "GLOBAL_BATCH_SIZE": lambda run, stage: stage.global_batch,
    "LR": lambda run, stage: stage.optim.lr,
    "MIN_LR": lambda run, stage: stage.optim.min_lr,
    "DECODER_SEQ_LEN": lambda run, stage: run.model.max_length,
    "PR": lambda run, stage: run.hardware.precision,
    "TP": lambda run, stage: run.hardware.tensor_parallel,
    "CP": lambda run, stage: run.hardware.sequence_parallel,
    "AC": lambda run, stage: stage.gradient_checkpointing,
    "OPTIMIZER_OFFLOAD": lambda run, stage: stage.offload,
    "SAVE_INTERVAL": lambda run, stage: stage.save_steps,
    "TRAIN_ITERS": lambda run, stage: stage.max_steps,
    "LR_WARMUP_ITERS": lambda run, stage: stage.optim.warmup_steps,
    "lr-decay-iters": lambda run, stage: stage.optim.decay_steps,
    "lr-decay-style": lambda run, stage: stage.optim.schedule,
    "weight-decay": lambda run, stage: stage.optim.weight_decay,
    "adam-betas": lambda run, stage: stage.optim.betas,
    "adam-eps": lambda run, stage: stage.optim.eps,
    "clip-grad": lambda run, stage: stage.optim.max_grad_norm,
    "eval-interval": lambda run, stage: stage.eval.steps,
    "eval-samples": lambda run, stage: stage.eval.max_samples,
    "num-workers": lambda run, stage: stage.order.workers,
    "data-parallel": lambda run, stage: [derived.data_ranks(run.hardware), stage.order.ranks],
    "freeze": lambda run, stage: [stage.tune.llm, stage.tune.tower, stage.tune.connector],
    "loss": lambda run, stage: stage.loss,
    "dataset": lambda run, stage: [run.data[name].format for name in (*stage.data, *stage.eval.data)],
    "splits": lambda run, stage: [run.data[name].split for name in (*stage.data, *stage.eval.data)],
    "feature-layer": lambda run, stage: run.model.tower.arguments["layers"],
    "projector": lambda run, stage: [run.model.connector.arguments[key] for key in ("depth", "hidden", "bias")],
    "projector-init": lambda run, stage: run.model.connector.arguments["init_std"],
    "tensorboard": lambda run, stage: "tensorboard" in run.tracking,
    "epochs": lambda run, stage: stage.epochs,
}


def test_the_recipe_has_the_values_of_the_script():
    run = composed()
    stage = run.stage["pretrain"]
    assert set(FLAGS["values"]) == set(VALUES)
    for name, wanted in FLAGS["values"].items():
        assert VALUES[name](run, stage) == wanted, name


def test_every_argument_of_the_script_has_its_line_in_the_guide():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "megatron-run.md").read_text("utf-8")
    assert len(FLAGS["arguments"]) == 23
    for number, name in enumerate(FLAGS["arguments"], start=1):
        assert f"| {number} | {name} |" in page, name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Shards with a train and a val part, and a tokenizer that knows [INST]."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("pai")
    tokenizer = AutoTokenizer.from_pretrained(pico_tokenizer(folder / "tokenizer"))
    tokenizer.add_tokens(TOKENS, special_tokens=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_records(folder, 24, text_only="none")
    write(folder / "data.json", folder / "wds", Layout(max_count=6), images=folder / "images",
          finish=lambda new: metadata.write(new, 4, [3, 1, 0]))  # fmt: skip
    return folder


def small(shelf, ranks, *more):
    """The recipe with tiny parts of the same families, two steps long; all else is its own."""
    launcher = "torchrun" if ranks > 1 else "inline"
    return composed(
        "hardware=cpu", f"hardware.ranks_per_node={ranks}", f"hardware.launcher={launcher}", "hardware.precision=fp32",
        "hardware.tensor_parallel=1", f"output={shelf / 'outputs'}", "model/llm=pico_mistral",
        f"model.llm.tokenizer={shelf / 'tokenizer'}", "model.llm.config.num_key_value_heads=4",
        "++model.llm.tokens=null", "model/tower=pico_clip", "model.connector.hidden=48", "model.max_length=128",
        "tracking=[]", "only=[pretrain]",
        *(f"data.{name}.annotations={shelf / 'wds'}" for name in ("pai_llava_558k", "pai_llava_558k_val")),
        "stage.pretrain.order.micro_batch=2", "stage.pretrain.global_batch=8", "stage.pretrain.max_steps=3",
        "stage.pretrain.optim.warmup_steps=1", "stage.pretrain.optim.decay_steps=2", "stage.pretrain.workers=0",
        "stage.pretrain.eval.steps=2", "stage.pretrain.eval.max_samples=4", *more,
    )  # fmt: skip


def _work(path):
    """A worker, in a forked child."""
    from vlmrun import worker

    return worker.main([path])


def carried_out(run, name, ranks):
    """The finished job of the recipe's training, in a folder of its own."""
    assert checks.check(run) == []
    planned, problems = graph.plan(run)
    assert problems == []
    going = pipeline.Run(run, planned, identity.keys(planned, run), Path(run.output) / "runs" / name)
    item = next(item for item in planned if item.name == "pretrain")
    job = pipeline.job_of(going, item)
    job = job.model_copy(update={"folder": str(Path(run.output) / name)})
    job.path.mkdir(parents=True)
    (job.path / JOB_FILE).write_text(job.to_json(), "utf-8")
    codes = forked.run(_work, ranks, str(job.path / JOB_FILE), group=ranks > 1)
    assert codes == [0] * ranks, (job.path / "logs" / "rank-0.log").read_text()[-3000:]
    return job


@pytest.mark.ranks
def test_the_shrunk_recipe_trains_alike_on_one_two_and_four_ranks(shelf):
    alone = carried_out(small(shelf, 1, "stage.pretrain.micro_batch=8"), "alone", 1)
    ways = {
        "tp": (2, "hardware.tensor_parallel=2", "stage.pretrain.micro_batch=8"),
        "cp": (2, "hardware.sequence_parallel=2", "stage.pretrain.micro_batch=8"),
        "tp-dp": (4, "hardware.tensor_parallel=2", "stage.pretrain.micro_batch=4"),
        "cp-dp": (4, "hardware.sequence_parallel=2", "stage.pretrain.micro_batch=4"),
    }
    for name, (ranks, *overrides) in ways.items():
        compare(alone, carried_out(small(shelf, ranks, *overrides), name, ranks))
