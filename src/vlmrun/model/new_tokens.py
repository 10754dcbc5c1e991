"""Tokens that a run adds to an LLM's vocabulary, and training of their embeddings alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmrun.errors import CheckpointError, ConfigError

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")  # ends of the input embedding's name


def add(model: Any, tokenizer: Any, added: Sequence[str]) -> list[str]:
    """Adds the tokens that the tokenizer does not have yet; returns those.

    New rows of the input embedding and of the output head are the mean of all rows before them.

    Raises:
        ConfigError: when the weights are sharded already (ZeRO-3), so that rows cannot be added.
    """
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    missing = [text for text in dict.fromkeys(added) if text not in known]
    if not missing:
        return []
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ConfigError(
            f"tokens cannot be added to sharded weights: {', '.join(missing)}",
            "stage.*.zero",
            "stage.*.zero=2 in the first stage: the later ones start from a model that has the tokens",
        )
    first = max(known.values()) + 1
    tokens = [AddedToken(text, normalized=False, special=True) for text in missing]
    tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(missing)
    if ids != list(range(first, first + len(missing))):
        raise ConfigError(f"the new tokens got ids {ids}, not from {first} on", "model.new_tokens", "a bug: report it")
    _grow(model, first, len(missing))
    return missing


@torch.no_grad()
def _grow(model: Any, first: int, n: int) -> None:
    """Rows from `first` on become the mean of those before; the matrices grow when they are too short."""
    if first + n > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(first + n, mean_resizing=False)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    matrices = [embedding] if head is None or head.weight is embedding else [embedding, head.weight]
    for matrix in matrices:
        matrix[first : first + n] = matrix[:first].float().mean(0).to(matrix.dtype)


def ids_of(tokenizer: Any, added: Sequence[str]) -> list[int]:
    """The ids of added tokens, which must all be there."""
    known = tokenizer.get_vocab()
    return [known[text] for text in dict.fromkeys(added)]


@torch.no_grad()
def fill_rows(llm: Any, tokenizer: Any, added: Sequence[str], rows: Tensor, where: str) -> None:
    """Gives the embeddings of added tokens the values that a projector's file brings.

    Args:
        rows: [n, D] of the tokens in their order, or [V, D], a whole embedding in which they have the same ids.

    Raises:
        CheckpointError: when the model adds no tokens, or others.
        ConfigError: when the weights are sharded.
    """
    weight, ids = llm.get_input_embeddings().weight, ids_of(tokenizer, added)
    if hasattr(weight, "ds_id"):
        raise ConfigError("ZeRO-3 cuts the embedding whose rows are to be filled", "stage.*.zero", "stage.*.zero=2")
    whole = bool(ids) and rows.shape[0] > max(ids)
    if not ids or rows.shape[1:] != weight.shape[1:] or not (whole or rows.shape[0] == len(ids)):
        raise CheckpointError(
            f"the file holds embeddings of added tokens, {list(rows.shape)}; this model adds {len(ids)} of "
            f"{weight.shape[1]} numbers",
            where,
            "name the tokens it was trained with (model.image_markers, model.new_tokens), or give a file of the "
            "connector alone",
        )
    weight[ids] = (rows[ids] if whole else rows).to(weight)


def train_rows(llm: Any, ids: Sequence[int]) -> None:
    """Makes these rows of the input embedding learn, and nothing else of the LLM.

    The gradient of every other row is zeroed before the optimizer sees it, so that without weight decay Adam leaves
    those rows bit-equal.

    Raises:
        ConfigError: when there are no rows, the weights are sharded, or the head shares the embedding's weights.
    """
    weight = llm.get_input_embeddings().weight
    head = llm.get_output_embeddings()
    if not ids:
        raise ConfigError("tune.llm: new_tokens, but the model adds none", "model.new_tokens", "name the tokens")
    if hasattr(weight, "ds_id"):
        raise ConfigError("ZeRO-3 cuts the embedding whose rows are to be trained", "stage.*.zero", "stage.*.zero=2")
    if head is not None and head.weight is weight:
        # Through the head every row would get a gradient of its own meaning; upstream freezes the head.
        raise ConfigError(
            "this LLM's output head is its input embedding: new rows cannot be trained alone",
            "stage.*.tune.llm",
            "tune.llm: full, or an LLM whose head is a matrix of its own",
        )
    weight.requires_grad_(True)
    weight.new_rows = tuple(ids)  # for `rows_of`
    kept = torch.zeros(weight.shape[0], 1, dtype=torch.bool)
    kept[list(ids)] = True

    def only_new(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(~kept.to(gradient.device), 0.0)

    weight.register_hook(only_new)


def rows_of(parameter: Tensor) -> tuple[int, ...]:
    """The rows that alone learn of a parameter; empty when all of it learns or nothing."""
    return tuple(getattr(parameter, "new_rows", ()))
