"""The door to models that answer: `vlmrun chat` and `vlmrun serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlmrun import store
from vlmrun.back.weights import know_checkpoints

if TYPE_CHECKING:
    import argparse
    from multiprocessing.connection import Connection

    from vlmrun.serve.messages import Plan


def chat(model: Path, options: argparse.Namespace) -> int:
    """Answers on stdout, or talks until the input ends; returns an exit code.

    Args:
        model: folder of a model, or of a training checkpoint.
        options: what `vlmrun chat` was given.

    Raises:
        CheckpointError: when there is no usable model in the folder.
        DataError: when an image, the history or the file of questions cannot be used.
    """
    from vlmrun.serve import chat

    know_checkpoints()
    return chat.main(model, options)


def serve(
    options: argparse.Namespace, models: Sequence[tuple[str, Path]], aliases: Mapping[str, str], key: str | None
) -> int:
    """Serves named models until stopped, to clients that send `key`; gives an exit code. Workers load torch."""
    from vlmrun.serve import start

    return start.main(options, models, aliases, key, serve_worker)


def serve_worker(pipe: Connection, plan: Plan) -> None:
    """The work of a process of `vlmrun serve`: loads the plan's models and answers until the pipe closes."""
    from vlmrun.serve import worker

    if any(store.is_checkpoint(Path(folder)) for _, folder in plan.models):
        know_checkpoints()  # loads DeepSpeed, which takes seconds
    worker.main(pipe, plan)
