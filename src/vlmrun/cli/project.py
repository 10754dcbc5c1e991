"""The files of a new project, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from vlmrun.cli import recipes
from vlmrun.cli.own_data import Own
from vlmrun.config import derived
from vlmrun.config.schema import RunConfig, TrainStage

_UPDATES = 200  # of a stage with little data: enough that the micro model learns it
_MOST_EPOCHS = 100
_GITIGNORE = "/outputs/\n/wandb/\n/data/\n.cache/\n"
# Rates that the micro model learns with; those of the presets are of models ten thousand times its size.
_RATES = {"pretrain": "3.0e-3", "instruct": "2.0e-3"}


def files(name: str, own: Sequence[Own], recipe: str | None) -> dict[str, str]:
    """Path -> text of every file of a project.

    Args:
        name: of the recipe that is made.
        recipe: a published one that it starts from; None: the micro model.
    """
    made = {f"conf/recipe/{name}.yaml": _small(name, own) if recipe is None else _published(name, own, recipe)}
    made |= {f"conf/data/{each.name}.yaml": _entry(each) for each in own}
    return made | {"README.md": _readme(name, recipe), ".gitignore": _GITIGNORE}


def commands(name: str, recipe: str | None) -> list[str]:
    """What to type next, in the project's folder."""
    run = f"vlmrun --config-dir conf +recipe={name}"
    if recipe is None:
        return [run]
    return [
        f"vlmrun download {name} --config-dir conf --dry-run",
        f"vlmrun check --config-dir conf +recipe={name}",
        run,
    ]


def _entry(own: Own) -> str:
    return f"""\
# @package data.{own.name}
# {own.n_records:,} {"captions" if own.captions else "conversations"} in LLaVA JSON. Paths start where vlmrun is run.
format: llava
split: null
fields: null
annotations: {json.dumps(own.annotations)}
images: {json.dumps(own.images)}
on_error: skip     # leaves bad records out and lists them in the stage's skipped.jsonl; fail: stops at them
prepare: null
about: null
"""


def _small(name: str, own: Sequence[Own]) -> str:
    captions = [each for each in own if each.captions]
    talks = [each for each in own if not each.captions]
    shapes = [] if captions else ["shapes_captions"]
    stages = {"pretrain": _micro_stage("pretrain", [each.name for each in captions] or shapes, captions)}
    if talks or not own:
        stages["instruct"] = _micro_stage("instruct", [each.name for each in talks] or ["shapes_instruct"], talks)
    test = [] if own else ["shapes_test"]
    if test:
        stages["evaluate"] = "{init_from: instruct, data: [shapes_test]}"
    data = [*shapes, *(each.name for each in own), *(["shapes_instruct"] if not own else []), *test]
    body = "\n".join(f"  {stage}: {text}" for stage, text in stages.items())
    return f"""\
# @package _global_
# Small enough for a laptop.   vlmrun --config-dir conf +recipe={name}
defaults:
  - override /model: micro
  - override /data: [{", ".join(data)}]
  - override /stage: [{", ".join(stages)}]
  - override /hardware: cpu
  - _self_
name: {name}
model: {{max_length: 512}}   # tokens of a sample, image tokens included; more are cut off
stage:
{body}
"""


def _micro_stage(stage: str, data: Sequence[str], own: Sequence[Own]) -> str:
    n_records = sum(each.n_records for each in own) or 2000
    batch = 1
    while batch < 32 and batch * 8 <= n_records:
        batch *= 2
    epochs = min(_MOST_EPOCHS, max(2.0, round(_UPDATES * batch / n_records, 1)))
    return (
        f"{{data: [{', '.join(data)}], optim: {{lr: {_RATES[stage]}}}, epochs: {epochs:.1f}, "
        f"global_batch: {batch}, micro_batch: {batch}, save_steps: 100}}"
    )


def _published(name: str, own: Sequence[Own], recipe: str) -> str:
    run, _ = recipes.resolved(recipe)
    reads = {stage: _replaced(run, stage, own) for stage in run.stage}
    changes = {stage: names for stage, names in reads.items() if names is not None}
    read_still = {
        source for stage, config in run.stage.items() if stage not in changes for source in derived.sources(config)
    }
    data = [*(source for source in run.data if source in read_still), *(each.name for each in own)]
    lines = [f"  {stage}: {{data: [{', '.join(names)}]}}" for stage, names in changes.items()]
    body = "stage:\n" + "\n".join(lines) + "\n" if lines else ""
    override = f"  - override /data: [{', '.join(data)}]\n" if own else ""
    return f"""\
# @package _global_
# {recipe}, on data of your own.   vlmrun --config-dir conf +recipe={name}
defaults:
  - /recipe/{recipe}
{override}  - _self_
name: {name}
{body}"""


def _replaced(run: RunConfig, stage: str, own: Sequence[Own]) -> list[str] | None:
    """The user's data of a training stage: captions where the template takes only those, else conversations."""
    config = run.stage[stage]
    if not isinstance(config, TrainStage):
        return None
    wants_captions = derived.template(config, run.model) == "plain"
    return [each.name for each in own if each.captions == wants_captions] or None


def _readme(name: str, recipe: str | None) -> str:
    run = "\n".join(commands(name, recipe))
    about = "a model small enough for a laptop" if recipe is None else f"`{recipe}`"
    return f"""\
# {name}

Trains {about} with vlmrun. Give the commands in this folder.

```sh
{run}
vlmrun ls
```

`conf/recipe/{name}.yaml` holds the run, `conf/data/` its data. A value is changed there or on the command line, such as
`stage.pretrain.optim.lr=1e-3`; `vlmrun check --config-dir conf +recipe={name}` reports every problem before anything is
trained. What is made goes to `outputs/`: `outputs/runs/{name}/report.html` is the report of a run.
"""
