"""`vlmrun doctor RUN`: why a model does not learn: what went wrong, and the likeliest causes. Written to stdout."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vlmrun import store
from vlmrun.cli.options import new_parser, output_option
from vlmrun.compare import sides
from vlmrun.config.job import JOB_FILE, StageJob
from vlmrun.config.schema import Data, RunConfig
from vlmrun.config.validate import validate
from vlmrun.doctor import evidence, rules
from vlmrun.doctor.finding import Finding
from vlmrun.doctor.rules import LIKELIEST, Diagnosis
from vlmrun.run import identity, record

_PLACES = {"annotations", "images", "image_roots", "gold", "prepare"}  # of data
GUIDE = "docs/guides/why-it-does-not-learn.md"
_EXAMPLES = """\
vlmrun doctor smoke              the newest run of a name
vlmrun doctor smoke/2            one of them
vlmrun doctor instruct           one stage
vlmrun doctor smoke --all        every cause that was found
"""


def main(arguments: list[str]) -> int:
    """Prints the diagnosis; 0 whether or not something was found."""
    about = (
        "Why a model does not learn: reads metrics, answers and scores of a run, finished or not, and says what is "
        "wrong, with the three likeliest causes, the numbers that point to each, and what to try."
    )
    parser = new_parser("doctor", about, _EXAMPLES)
    parser.add_argument("run", help="a run's name, NAME/NUMBER or folder; a stage's name, name-key or folder")
    parser.add_argument("--all", action="store_true", help="all causes that were found, not three")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    output_option(parser)
    options = parser.parse_args(arguments)
    folders, error = _folders(Path(options.output), options.run)
    case = evidence.read(folders, error)
    found = rules.diagnose(case)
    if options.json:
        json.dump(_to_json(found), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        trained = [f"{one.name}, {len(one.rows):,} updates" for one in case.trainings]
        asked = [f"{one.name}, {len(one.answers):,} answers" for one in case.evaluations]
        sys.stdout.write(f"{options.run}: read {'; '.join([*trained, *asked]) or 'nothing that trains or answers'}\n")
        _print(found, None if options.all else LIKELIEST)
    return 0


def _folders(root: Path, reference: str) -> tuple[list[Path], str | None]:
    """Stage folders of a run or of one stage, and what ended the run; of an unfinished run those it has begun."""
    side = sides.find(root, reference)
    folders = [made.folder for made in side.stages.values()]
    known = record.read(side.folder.resolve()) if side.kind == "run" else None
    if known is None:
        return folders, None
    begun = (path.parent for path in store.stages_dir(root).glob(f"*/{JOB_FILE}"))
    config, _ = validate(known.config)
    wanted = set(known.config.get("stage", {})) - set(side.stages)
    unfinished = [
        path
        for path in sorted(begun)
        if config is not None and not store.finished(path) and _is_of(path, config, wanted)
    ]
    return [*folders, *unfinished], known.last.error if known.state != "finished" else None


def _is_of(folder: Path, config: RunConfig, stages: set[str]) -> bool:
    """Whether a stage was begun by this run, and not by another one of the same name: it was asked to do the same."""
    try:
        job = StageJob.read(folder / JOB_FILE)
    except (OSError, ValueError):
        return False
    if job.run != config.name or job.name not in stages:
        return False
    asked = identity.stable(job.stage) == identity.stable(config.stage[job.name])
    same_model = identity.stable(job.model) == identity.stable(config.model)
    same_model = same_model and job.hardware.precision == config.hardware.precision
    return asked and same_model and all(_is_same(data, config.data.get(name)) for name, data in job.data.items())


def _is_same(data: Data, other: Data | None) -> bool:
    """Whether a job's data are those of a configuration. The job has their paths in full, and prepared data moved."""
    if other is None or Path(data.annotations).name != Path(other.annotations).name:
        return False
    return data.model_dump(exclude=_PLACES) == other.model_dump(exclude=_PLACES)


def _print(found: Diagnosis, most: int | None) -> None:
    if not found.symptoms and not found.causes:
        sys.stdout.write("nothing points to a fault\n")
        return
    if found.symptoms:
        sys.stdout.write("\nwhat is wrong\n")
        _list([finding for _, finding in found.symptoms], fixes=False)
    if found.causes:
        shown = found.causes[:most]
        of = f", {len(shown)} of {len(found.causes)}" if len(shown) < len(found.causes) else ""
        sys.stdout.write(f"\nlikeliest causes{of}\n")
        _list([finding for _, finding in shown], fixes=True)
    else:
        sys.stdout.write("\nno cause is visible; try eight samples by heart first: stage=[overfit]\n")
    sys.stdout.write(f"\n{GUIDE} explains each\n")


def _list(findings: Sequence[Finding], *, fixes: bool) -> None:
    for number, one in enumerate(findings, 1):
        lines = textwrap.wrap(f"{number}. {one.stage}: {one.what}", 78, subsequent_indent="   ")
        lines += (
            textwrap.wrap(f"try: {one.fix}", 78, initial_indent="   ", subsequent_indent="        ") if fixes else []
        )
        sys.stdout.write("\n".join(lines) + "\n")


def _to_json(found: Diagnosis) -> dict[str, object]:
    return {
        "symptoms": [{"rule": name, **asdict(finding)} for name, finding in found.symptoms],
        "causes": [{"rule": name, **asdict(finding)} for name, finding in found.causes],
    }
