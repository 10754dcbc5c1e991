"""Arguments that several verbs take."""

from __future__ import annotations

import argparse
import os


def at_least_one(text: str) -> int:
    """An argument's number, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def output_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--output`, the root below which artifacts are looked for."""
    parser.add_argument(
        "--output", default=os.environ.get("VLMRUN_OUTPUT", "outputs"), help="output root (default: %(default)s)"
    )
