"""`vlmrun data show | lint | ledger | prepare`: what is trained, seen before and after."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from vlmrun import artifact, back, graph, logs
from vlmrun.cli import data_convert, help, ledger, train
from vlmrun.cli import request as requests
from vlmrun.cli.options import new_parser
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import Reading, RunConfig, TrainStage
from vlmrun.data.findings import CLASSES, NOTES, Finding, Tally
from vlmrun.data.formats.base import check_source
from vlmrun.data.formats.values import whole
from vlmrun.errors import ConfigError, DataError, Problem, suggest
from vlmrun.inspect import sizes
from vlmrun.run import pipeline

FOUND_PROBLEMS = DataError.exit_code
_ACTIONS = ("show", "lint", "ledger", "prepare", "convert")


def main(arguments: list[str]) -> int:
    """`vlmrun data ...`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(help.DATA)
        return 0
    action, rest = arguments[0], arguments[1:]
    if action not in _ACTIONS:
        raise ConfigError(f"no verb `data {action}`", "command line", suggest(action, _ACTIONS, noun="verbs"))
    logs.setup()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    verbs = {"show": show, "lint": lint, "ledger": ledger.main, "prepare": prepare, "convert": data_convert.main}
    return verbs[action](rest)


def show(arguments: list[str]) -> int:
    """`vlmrun data show`."""
    parser = new_parser("data show", "One sample as the model will see it.", help.DATA_SHOW, usage=help.DATA_SHOW_USAGE)
    parser.add_argument("--stage", help="a train stage of the run (default: the first)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options, words = parser.parse_known_args(arguments)
    numbers = [word for word in words if word.isdecimal()]
    if len(numbers) > 1:
        raise ConfigError(f"two places are given: {', '.join(numbers)}", "command line", "name one record")
    request = requests.read([word for word in words if word not in numbers])
    run = _prepared(train.compose(request.overrides, request.config_dirs), options.stage)
    job = _job(run, _train_stage(run.config, options.stage))
    found = back.show_sample(job, int(numbers[0]) if numbers else 0, sizes.of(run.config.model))
    sys.stdout.write(whole(json.dumps(found, ensure_ascii=False) + "\n" if options.json else _page(found)))
    return 0


def lint(arguments: list[str]) -> int:
    """`vlmrun data lint`: 0 when nothing is wrong, 3 when something is."""
    parser = new_parser("data lint", "What is wrong with training data.", help.DATA_LINT, usage=help.DATA_LINT_USAGE)
    parser.add_argument("--images", type=Path, help="folder that image names start from")
    parser.add_argument("--image-root", type=Path, action="append", default=[], help="also allow links to this folder")
    parser.add_argument(
        "--format", default="llava", help="llava (default), sharegpt, openai, minicpm, vqa, wds, energon, or a module"
    )
    parser.add_argument("--ignore-key", action="append", default=[], dest="ignore_keys", metavar="KEY", help="drop it")
    parser.add_argument("--split", help="energon: train (default), val or test")
    parser.add_argument("--template", help="look for its marks in texts, and for records it cannot show")
    parser.add_argument("--tokenizer", help="folder: look for its special tokens, and for records that are too long")
    parser.add_argument("--image-tokens", type=int, default=576, help="positions an image takes (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=2048, help="default: %(default)s")
    parser.add_argument("--decode", type=_number_or_all, default=1000, metavar="N", help="images to decode, or all")
    parser.add_argument("--report", type=Path, help="write every finding there, one JSON object a line")
    parser.add_argument("--limit", type=int, help="look at N records only")
    options, words = parser.parse_known_args(arguments)
    tally = Tally()
    is_file = len(words) == 1 and "=" not in words[0]
    sources = [_file(words[0], options, tally)] if is_file else list(_all_data(words, options, tally))
    with (options.report or Path(os.devnull)).open("w", encoding="utf-8", errors="backslashreplace") as report:
        for finding in chain.from_iterable(sources):
            tally.add(finding)
            report.write(json.dumps(finding.to_dict(), ensure_ascii=False) + "\n")
    sys.stdout.write(whole(_table(tally, len(sources))))
    return FOUND_PROBLEMS if tally.n_problems else 0


def prepare(arguments: list[str]) -> int:
    """`vlmrun data prepare scienceqa`."""
    parser = new_parser("data prepare", "Published data sets -> LLaVA JSON.", help.DATA_PREPARE)
    parser.add_argument("dataset", choices=["scienceqa"])
    parser.add_argument("--base-dir", type=Path, required=True, help="folder of problems.json and pid_splits.json")
    parser.add_argument("--split", default="train", help="a key of pid_splits.json (default: %(default)s)")
    parser.add_argument("--prompt-format", default="QCM-LEA", help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--escape-newlines", action="store_true", help="line breaks of reasons as backslash and n")
    options = parser.parse_args(arguments)
    records = back.scienceqa(
        options.base_dir, options.split, options.prompt_format, escape_newlines=options.escape_newlines
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_text(options.output, json.dumps(records, ensure_ascii=False, indent=2) + "\n")
    n_images = sum("image" in record for record in records)
    logs.get(__name__).info("%s: %d records, %d with an image", options.output, len(records), n_images)
    return 0


def _prepared(config: RunConfig, stage: str | None) -> pipeline.Run:
    """The planned run, with the data made that `stage` (None: every one) reads and that has to be made first."""
    _require_files(config, stage)
    run = pipeline.prepare(config)
    wanted = {maker for item in run.planned if stage in (None, item.name) for maker in item.prepared.values()}
    pipeline.make_data(run, {maker for maker in wanted if artifact.read(run.stage_folder(maker)) is None})
    return run


def _train_stage(config: RunConfig, name: str | None) -> str:
    names = [key for key, stage in config.stage.items() if isinstance(stage, TrainStage)]
    if name is None and names:
        return names[0]
    if name not in names:
        raise ConfigError(f"no train stage {name or ''!r}", "--stage", suggest(name or "", names, noun="train stages"))
    return name


def _job(run: pipeline.Run, name: str) -> StageJob:
    return pipeline.job_of(run, next(item for item in run.planned if item.name == name))


def _number_or_all(text: str) -> int | None:
    return None if text == "all" else int(text)


def _file(word: str, options: argparse.Namespace, tally: Tally) -> Iterator[Finding]:
    path = Path(word).expanduser()
    check_source(path, folder=options.format in derived.SHARDS)
    options.images = path if options.format in derived.SHARDS else options.images
    if options.images is None:
        logs.get(__name__).info("no --images: images are not looked at")
    return back.lint_file(path, vars(options), tally)


def _all_data(words: Sequence[str], options: argparse.Namespace, tally: Tally) -> Iterator[Iterator[Finding]]:
    """What is wrong with every data entry that a train or evaluate stage reads, by the rules of the first that does."""
    request = requests.read(list(words))
    run = _prepared(train.compose(request.overrides, request.config_dirs), None)
    known = sizes.of(run.config.model)
    seen: set[tuple[str, str]] = set()
    for item in graph.selected(run.planned, run.config.only):
        if not isinstance(item.stage, Reading):
            continue
        job = pipeline.job_of(run, item)
        for name in job.data:
            if (name, str(item.stage.template)) in seen:
                continue
            seen.add((name, str(item.stage.template)))
            yield back.lint_data(job, name, known, options.limit, options.decode, tally)


def _require_files(config: RunConfig, stage: str | None) -> None:
    """Names every annotation file that is not there: they are part of a stage's key."""
    problems = []
    stages = [each for name, each in config.stage.items() if stage in (None, name)]
    used = {name for each in stages for name in derived.sources(each)}
    for name, data in config.data.items():
        if name not in used or data.prepare is not None:
            continue
        try:
            check_source(Path(data.annotations).expanduser(), folder=derived.in_shards(data))
        except DataError as error:
            found = error.problems[0]
            fix = data.about.fetch if data.about else found.fix
            problems.append(Problem(f"{found.what}: {found.where}", f"data.{name}.annotations", fix))
    if problems:
        raise DataError(problems)


def _table(tally: Tally, n_files: int) -> str:
    """Class, count, meaning, and the first examples."""
    lines = []
    for kind, meaning in (CLASSES | NOTES).items():
        if kind not in tally.counts:
            continue
        lines.append(f"{kind:17} {tally.counts[kind]:>9,}  {meaning}")
        for example in tally.examples[kind]:
            lines.append(f"{'':17} {'':>9}    {example.where}: {example.what}")
    if tally.n_by_header:
        lines.append(f"of {tally.n_by_header:,} images the header alone was read: --decode all decodes each")
    found = f"{tally.n_problems:,} problems" if tally.n_problems else "ok: no problem"
    return "\n".join([*lines, f"{found} in {tally.n_records:,} records of {n_files} file{'s' * (n_files != 1)}"]) + "\n"


def _page(found: dict[str, Any]) -> str:
    """As text: what is supervised in color, or between [[ and ]]."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    file, index = found["source"]
    head = [
        f"stage {found['stage']}, data {found['data']}: {file}[{index}]"
        + (f" (id {found['id']!r})" if found["id"] else "")
    ]
    for image in found["images"]:
        cut = f", cut into {image['grid'][0]} x {image['grid'][1]} tiles" if image["grid"] else ""
        head.append(f"image {image['name']}: {image['tokens']} tokens{cut}")
    body = "".join(_piece(piece, colour) for piece in found["pieces"])
    ids = " ".join(
        f"[{id}]" if label != -100 else str(id) for id, label in zip(found["input_ids"], found["labels"], strict=True)
    )
    tail = [
        f"template {found['template']}; {found['n_tokens']} tokens ({found['n_image_tokens']} of images), "
        f"{found['n_supervised']} supervised; {found['n_kept']} of at most {found['max_length']} kept"
    ]
    if found["problem"]:
        tail.append(f"cannot be trained: {found['problem']}")
    elif found["truncated"]:
        tail.append("truncated: what stands after the mark <<CUT>> is not seen")
    return "\n".join([*head, "", body, "", f"ids: {ids}", *tail]) + "\n"


def _piece(piece: dict[str, Any], colour: bool) -> str:
    if piece.get("image"):
        text = f"<image: {piece['n_tokens']} tokens>"
        return f"\033[36m{text}\033[0m" if colour else text
    text = piece["text"]
    if not piece["kept"]:
        return f"<<CUT>>{text}"
    if not piece["supervised"]:
        return str(text)
    return f"\033[1;32m{text}\033[0m" if colour else f"[[{text}]]"
