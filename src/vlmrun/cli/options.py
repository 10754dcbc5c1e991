"""Arguments that several verbs take."""

from __future__ import annotations

import argparse
import os


def at_least_one(text: str) -> int:
    """An argument's number, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def model_options(parser: argparse.ArgumentParser) -> None:
    """How a model that answers is loaded."""
    group = parser.add_argument_group("how models are loaded")
    group.add_argument(
        "--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 on a GPU, fp32 on a CPU"
    )
    kernels = ("sdpa", "eager", "flash_attention_2", "xformers")
    group.add_argument("--attention", choices=kernels, default="sdpa", help="(default: %(default)s)")
    bits = group.add_mutually_exclusive_group()
    bits.add_argument("--load-4bit", dest="bits", action="store_const", const=4, help="linear layers in 4 bits (NF4)")
    bits.add_argument("--load-8bit", dest="bits", action="store_const", const=8, help="linear layers in 8 bits")
    training_option(group)
    output_option(group)


def training_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--from training`, for checkpoints that are not below the output root."""
    parser.add_argument(
        "--from", dest="came_as", choices=("training",), help="it is a training checkpoint, from a place you trust"
    )


def output_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--output`, the root below which artifacts are looked for."""
    parser.add_argument(
        "--output", default=os.environ.get("VLMRUN_OUTPUT", "outputs"), help="output root (default: %(default)s)"
    )
