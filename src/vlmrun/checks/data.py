"""Rules about data, their files, and the templates that make text of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import Asking, BenchmarkConfig, ConvertStage, DataConfig, Reading, RunConfig, TrainStage
from vlmrun.data.formats import FORMATS
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import Problem, suggest


def _readers(run: RunConfig) -> dict[str, Reading]:
    return {name: stage for name, stage in run.stage.items() if isinstance(stage, Reading)}


def _templated(run: RunConfig) -> dict[str, Reading | ConvertStage]:
    converting = {name: stage for name, stage in run.stage.items() if isinstance(stage, ConvertStage)}
    return {**_readers(run), **converting}


def _templates(run: RunConfig) -> Iterator[Problem]:
    if run.model.template not in TEMPLATES:
        fix = suggest(run.model.template, TEMPLATES, noun="templates")
        yield Problem(f"no template {run.model.template!r}", "model.template", fix)
    for name, stage in _templated(run).items():
        theirs = isinstance(stage, TrainStage) and stage.compat.labels == "minicpm"
        if theirs and not (stage.template or run.model.template).startswith("minicpm_"):
            yield Problem(
                "MiniCPM-V's labels are those of its own templates",
                f"stage.{name}.compat.labels",
                "minicpm_v2, minicpm_v25 or minicpm_v26 as model.template, or compat.labels=null",
            )
        if stage.template is not None and stage.template not in TEMPLATES:
            where = f"stage.{name}.template"
            yield Problem(
                f"no template {stage.template!r}", where, suggest(stage.template, TEMPLATES, noun="templates")
            )


def _data(run: RunConfig) -> Iterator[Problem]:
    used = derived.files_read(run)
    for name, data in run.data.items():
        plain = not isinstance(data, BenchmarkConfig)  # whose formats are in the schema
        if plain and "." not in data.format and data.format not in FORMATS:
            where = f"data.{name}.format"
            yield Problem(f"no data format {data.format!r}", where, suggest(data.format, FORMATS, noun="formats"))
        if name in used:
            yield from _files(data, f"data.{name}")
        for key, path in (("annotations", data.annotations), ("images", data.images)):
            if data.prepare is not None and path and (Path(path).is_absolute() or ".." in Path(path).parts):
                yield Problem(
                    f"{path!r} leaves the folder that is prepared", f"data.{name}.{key}", "a path inside that folder"
                )
    for name, stage in _readers(run).items():
        for source in stage.data:
            entry = run.data.get(source)
            kind = None if entry is None else "vqa" if isinstance(entry, BenchmarkConfig) else entry.format
            if (kind == "vqa") != isinstance(stage, Asking) and kind in FORMATS:
                wanted = "vqa" if isinstance(stage, Asking) else "llava"
                yield Problem(
                    f"{stage.kind} cannot read data {source!r} of format {kind}",
                    f"stage.{name}.data",
                    f"name data of format {wanted}",
                )


def _files(data: DataConfig, where: str) -> Iterator[Problem]:
    annotations = Path(data.annotations).expanduser()
    shards = derived.in_shards(data)
    is_there = annotations.is_dir() if shards else annotations.is_file()
    noun = "folder of shards" if shards else "file"
    missing = [] if is_there else [("annotations", f"no {noun} {data.annotations!r}")]
    if data.images is not None and not (data.images and Path(data.images).expanduser().is_dir()):
        missing.append(("images", f"no folder {data.images!r}"))
    missing += [
        ("image_roots", f"no folder {root!r}") for root in data.image_roots if not Path(root).expanduser().is_dir()
    ]
    if missing and data.about is not None:
        about = data.about
        terms = about.licence
        records = f", {about.records:,} records" if about.records else ""
        fix = f"from {about.url} (license: {terms}{records}): {about.fetch}; VLMRUN_DATA names the data folder"
        yield Problem(" and ".join(what for _, what in missing), where, fix)
        return
    fixes = {
        "annotations": f"give an existing {noun}",
        "images": "give the folder that image paths start from",
        "image_roots": "give a folder that links among the images lead to",
    }
    for key, what in missing:
        yield Problem(what, f"{where}.{key}", fixes[key])


RULES = (
    Rule("templates", "Every template exists, and MiniCPM-V's labels are made by its own templates.",
         ("model.template", "stage.*.template", "stage.*.compat.labels"), _templates, here=True),
    Rule("data", "Data that are read have a known format, which the stage can use, and their files are there.",
         ("data.*.format", "data.*.annotations", "data.*.images", "data.*.image_roots", "stage.*.data"), _data,
         here=True),
)  # fmt: skip
