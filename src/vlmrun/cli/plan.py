"""`vlmrun plan`: what a run needs, without a GPU and without weights."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from vlmrun import logs
from vlmrun.cli import request as requests
from vlmrun.cli import train
from vlmrun.cli.options import new_parser
from vlmrun.config import derived
from vlmrun.errors import ConfigError
from vlmrun.plan import run as planning
from vlmrun.plan import time
from vlmrun.plan.stage import TrainPlan
from vlmrun.plan.time import Rates
from vlmrun.report import plan_table
from vlmrun.run import sweep

_EXAMPLES = """\
vlmrun plan +recipe=llava15_7b
vlmrun plan +recipe=llava15_7b hardware=v100_fp16 --price 0.8
vlmrun plan -m +recipe=llava15_7b hardware=a100_40g,a100_bf16,h100_bf16
"""


def main(arguments: list[str]) -> int:
    """Plans a run, or with `-m` every point of a sweep. Results go to stdout."""
    options, overrides = _parser().parse_known_args(arguments)
    request = requests.read(overrides)
    logs.setup()
    if request.show_config:
        raise ConfigError("plan prints a plan, not the composed run", "command line", "vlmrun OVERRIDES --cfg job")
    told = planning.Options(Rates(options.mfu, options.price), dict(options.records))
    if not request.multirun:
        found = planning.plan(train.compose(request.overrides, request.config_dirs), told)
        if options.json:
            _print(to_dict(found, told))
        else:
            plan_table.show(found, told, sys.stdout)
        return 0
    points = [
        (" ".join(own), planning.plan(train.compose(point, request.config_dirs), told))
        for point, own in sweep.expand(request.overrides)
    ]
    if options.json:
        _print([{"overrides": own, **to_dict(found, told)} for own, found in points])
    else:
        plan_table.compare(points, sys.stdout)
    return 0


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "plan",
        "Memory, time, cost and disk of a run; takes the overrides that `vlmrun check` takes.",
        _EXAMPLES,
        usage="vlmrun plan OVERRIDES [-m] [--json] [--mfu SHARE] [--price DOLLARS]\n"
        "                   [--records NAME=N] [--config-dir DIR]",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument(
        "--mfu", type=_share, default=time.MFU, help="share of the GPU's peak that is reached (default: %(default)s)"
    )
    parser.add_argument(
        "--price", type=_not_negative, default=time.PRICE, help="dollars per GPU and hour (default: %(default)s)"
    )
    parser.add_argument(
        "--records", type=_records, action="append", default=[], metavar="NAME=N", help="records of a data set"
    )
    return parser


def _share(text: str) -> float:
    value = _not_negative(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _records(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.replace("_", "").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N, such as bunny_695k=695000")
    return name, int(number)


def to_dict(found: planning.Plan, told: planning.Options) -> dict[str, Any]:
    """A plan for machines; sizes in bytes."""
    hardware = found.run.hardware
    return {
        "name": found.run.name,
        "hardware": {
            "gpu": hardware.gpu,
            "gpus": derived.ranks(hardware),
            "precision": hardware.precision,
            "attention": hardware.attention,
        },
        "assumptions": plan_table.assumptions(found, told),
        "stages": [_stage(one) for one in found.stages],
    }


def _stage(one: Any) -> dict[str, Any]:
    if not isinstance(one, TrainPlan):
        return {"name": one.name, "kind": one.kind, "disk_bytes": one.needs.disk, "memory_bytes": one.needs.memory}
    needed, work = one.memory, one.duration
    return {
        "name": one.name,
        "kind": "train",
        "parameters": {part: {"total": n.total, "trained": n.trained} for part, n in one.counts.items()},
        "data": [asdict(source) for source in one.sources],
        "batch": asdict(one.batch),
        "memory": {
            "moment": needed.moment,
            "terms_bytes": needed.terms,
            "moments_bytes": needed.moments,
            "elsewhere_bytes": needed.elsewhere,
            "tensors_bytes": needed.tensors,
            "allowance_bytes": needed.allowance,
            "total_bytes": needed.total,
            "host_bytes": needed.host,
            "drive_bytes": needed.drive,
            "capacity_bytes": one.capacity,
        },
        "fits": one.fits,
        "largest_micro_batch": one.fitting,
        "suggestions": [asdict(suggestion) for suggestion in one.suggestions],
        "work": asdict(work) if work is not None else None,
        "disk": {f"{name}_bytes": n_bytes for name, n_bytes in asdict(one.disk).items()},
        "features": None if one.features is None else asdict(one.features) | {"pays": one.features.pays},
    }
