"""Rows of the embedding that belong to tokens which a model adds, such as those around an image.

The original trainer keeps them in the projector's file, as a matrix of these rows or as the whole embedding.

Source: haotian-liu/LLaVA@c121f04:llava/model/llava_arch.py (initialize_vision_tokenizer)
"""

from __future__ import annotations

from pathlib import Path

from vlmrun.errors import CheckpointError
from vlmrun.formats.base import Model
from vlmrun.formats.instantiate import tokenizer
from vlmrun.model.new_tokens import EMBEDDINGS, ids_of
from vlmrun.model.parts import added_tokens
from vlmrun.weights.lazy import Lazy, stack


def added_rows(model: Model) -> dict[str, Lazy]:
    """Those rows, in the order of the tokens, under the embedding's internal name; nothing when none are added."""
    name = next((name for name in model.tensors if name.startswith("llm.") and name.endswith(EMBEDDINGS)), None)
    added = [] if model.config is None else added_tokens(model.config)
    if name is None or not added:
        return {}
    embedding = model.tensors[name]
    return {name: stack([embedding.between(row, row + 1) for row in ids_of(tokenizer(model), added)])}


def refuse_rows(own: dict[str, Lazy], base: Model, folder: Path) -> None:
    """Refuses rows of tokens beside a projector that the base's embedding does not have.

    Raises:
        CheckpointError: naming the way to use them.
    """
    for name, value in own.items():
        known = base.tensors.get(name)
        if name.endswith(EMBEDDINGS) and known is not None and known.shape != value.shape:
            raise CheckpointError(
                f"the projector comes with {name} {list(value.shape)}, the base has {list(known.shape)}: rows of added "
                "tokens have no place there",
                str(folder),
                "train from it: model.connector.weights=FILE with the model's image_markers",
            )
