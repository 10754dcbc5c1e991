"""Every published recipe, whole and shrunk: composed, checked, and each of its stages carried out with tiny parts.

What shrinks is said below, in `_small`: parts of the same family, few samples, two steps. All else is the recipe's:
templates, connectors, what is tuned, adapters, groups of length, ZeRO, losses, merges, averages. All recipes share one
output folder, so that stages with equal values are carried out once.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests import pico_minicpm
from tests.integration import ranks as forked
from tests.pico import WIDE, pico_tokenizer
from vlmrun import artifact, graph, store
from vlmrun.checks import rules as checks
from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.job import JOB_FILE
from vlmrun.config.schema import TrainStage
from vlmrun.config.validate import validate
from vlmrun.formats import load as saved
from vlmrun.run import identity, pipeline

OURS = {"smoke", "emoji_smollm2", "pai_llava_mistral_7b"}
RECIPES = sorted({path.stem for path in (conf_dir() / "recipe").glob("*.yaml")} - OURS)
# What the path of an LLM says of its family, and the tiny option of it.
LLMS = {
    "Synatra": "pico_mistral",
    "Phi-3": "pico_phi3",
    "phi-": "pico_phi",
    "Qwen": "pico_qwen2",
    "stablelm": "pico_stablelm",
    "MiniCPM": "pico_minicpm",
    "mpt": "pico_mpt",
}
TOKENS = [
    *("<s>", "</s>", "<unk>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
]
TIMM = "{architecture: eva02_large_patch14_clip_336, model_args: {embed_dim: 32, depth: 3, num_heads: 2}}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder that all recipes and all workers of pytest-xdist share: data, a tokenizer, finished stages."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "recipes"
    folder.mkdir(exist_ok=True)
    with (folder / "once").open("a") as once:
        fcntl.flock(once, fcntl.LOCK_EX)
        if not (folder / "ready").is_file():
            _fill(folder)
            (folder / "ready").touch()
    return folder


def _fill(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pico_tokenizer(folder / "tokenizer"))
    tokenizer.add_tokens(TOKENS, special_tokens=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    records = []
    for index in range(10):
        turns = [("human", "<image>\nWhich colour?"), ("gpt", "red " * (1 + index % 3))]
        record = {"id": str(index), "image": f"{index}.png"}
        Image.new("RGB", (20, 12), (20 * index, 90, 200 - 15 * index)).save(folder / f"{index}.png")
        record["conversations"] = [{"from": side, "value": text.strip()} for side, text in turns]
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records))
    pico_minicpm.llm(folder / "minicpm" / "llm", **WIDE)
    pico_minicpm.records(folder / "minicpm")


def _composed(recipe, overrides):
    composed = compose([f"+recipe={recipe}", *overrides])
    run, problems = validate(composed.tree, composed.problems)
    assert [*composed.problems, *problems] == []
    return run


def _first(recipe):
    """The recipe as it is, what only a user can name filled in."""
    composed = compose([f"+recipe={recipe}"])
    unset = [f"{p.where}=x" for p in composed.problems if p.what.endswith("has no value yet")]
    run, problems = validate(compose([f"+recipe={recipe}", *unset]).tree)
    assert problems == []
    return run


def _small(run, shelf):
    """The overrides that shrink a recipe."""
    path = str(run.model.llm.arguments["path"])
    if "MiniCPM-Llama3-V" in path:
        return _minicpm(run, shelf / "minicpm", shelf)
    llm = next((option for mark, option in LLMS.items() if mark in path), "pico")
    overrides = [
        "hardware=cpu",
        "hardware.ranks_per_node=1",
        "hardware.precision=fp32",
        f"output={shelf / 'outputs'}",
        f"model/llm={llm}",
        f"model.llm.tokenizer={shelf / 'tokenizer'}",
        "model.llm.config.max_position_embeddings=4096",
        "++model.llm.tokens=null",
    ]
    if "mpt" in llm:
        overrides[-2] = "model.llm.config.max_seq_len=4096"
    overrides += _small_tower(run)
    for name in run.data:
        overrides += [f"data.{name}.annotations={shelf / 'data.json'}", f"data.{name}.images={shelf}"]
    return overrides + _small_stages(run)


def _minicpm(run, folder, shelf):
    """A VLM that is taken apart: its LLM lies in a folder, and its records are of another form."""
    overrides = [
        "hardware=cpu",
        "hardware.precision=fp32",
        f"output={shelf / 'outputs'}",
        f"model.llm.path={folder / 'llm'}",
        "model.llm.tokens=null",
        "model/tower=pico_navit",
        "model.connector.queries=4",
        "model.connector.weights=null",
        "model.tiles.resolution=32",
        "model.max_length=256",
    ]
    for name in run.data:
        overrides += [f"data.{name}.annotations={folder / 'data.json'}", f"data.{name}.images={folder / 'images'}"]
    return overrides + _small_stages(run)


def _small_stages(run):
    overrides = []
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage):
            sizes = {"global_batch": 4, "micro_batch": 2, "max_steps": 2, "workers": 0, "save_steps": 9}
            overrides += [f"stage.{name}.{key}={value}" for key, value in sizes.items()]
            if stage.lora is not None:
                overrides.append(f"stage.{name}.lora.r=4")
    return overrides


def _small_tower(run):
    target = run.model.tower.target
    if target.endswith("Timm"):
        return [f"+model.tower.config={TIMM}", "model.tower.path=null", "model.tower.image_size=28"]
    option = "pico_clip" if target.endswith("Clip") else "pico"
    overrides = [f"model/tower={option}", "model.tower.config.patch_size=8", "model.tower.config.num_hidden_layers=3"]
    if run.model.connector.target.endswith("Dense"):
        overrides.append("model.tower.layers=null")
        if run.model.connector.arguments["kind"] != "dci":
            overrides.append("model.connector.shallow=[0,1]")
    elif run.model.tower.arguments.get("scales"):
        overrides.append("model.tower.scales=[1,2,3]")
    return overrides


def _work(path):
    """A worker, in a forked child."""
    from vlmrun import worker

    return worker.main([path])


def _carry_out(run):
    """All stages in order; those that another recipe finished are taken as they are."""
    planned, problems = graph.plan(run)
    assert problems == []
    going = pipeline.Run(run, planned, identity.keys(planned, run), Path(run.output) / "runs" / run.name)
    for item in planned:
        folder = going.stage_folder(item.name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{folder}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if store.finished(folder) is None:
                job = pipeline.job_of(going, item)
                artifact.write_text(folder / JOB_FILE, job.to_json())
                (code,) = forked.run(_work, 1, str(folder / JOB_FILE), group=False)
                assert code == 0, (folder / "logs" / "rank-0.log").read_text()[-3000:]
    return {item.name: going.stage_folder(item.name) for item in planned}


def _start(run, shelf):
    """What a recipe that goes on from a finished model starts from: that model's own recipe, carried out."""
    base = "denseconnector_dci_7b" if "dense" in run.name else run.name.partition("_task")[0]
    whole = _composed(base, _small(_first(base), shelf))
    return _carry_out(whole)["instruct"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_from_end_to_end(recipe, shelf):
    published = _first(recipe)
    overrides = _small(published, shelf)
    outside = [
        name for name, stage in published.stage.items() if getattr(stage, "init_from", "") == "your/finished/model"
    ]
    overrides += [f"stage.{name}.init_from={_start(published, shelf)}" for name in outside]
    run = _composed(recipe, overrides)
    assert checks.check(run) == []
    folders = _carry_out(run)
    for name, stage in run.stage.items():
        described = saved.describe(folders[name])
        connector = run.model.connector
        assert described["model"]["connector"]["_target_"] == connector.target
        if not isinstance(stage, TrainStage):
            assert described["adapter"] is None
            continue
        assert described["template"]["name"] == (stage.template or run.model.template)
        assert (described["adapter"] is not None) == stage.tune.adapters
        said = (folders[name] / "logs" / "rank-0.log").read_text()
        # The trainer's own proof: what is to learn moved, what is frozen did not.
        assert "the tune proof could not be made" not in said
        tuned = {part: how for part, how in published.stage[name].tune.model_dump().items() if how != "freeze"}
        assert {part: getattr(stage.tune, part) for part in tuned} == tuned
