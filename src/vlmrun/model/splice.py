"""Image features take their places among token embeddings."""

from __future__ import annotations

import torch

from vlmrun.errors import DataError


def splice(embeds: torch.Tensor, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Puts feature rows, in order, where `mask` is true; row-major over the batch, out of place.

    Args:
        features: one row per image position, of all images one after another.

    Shape:
        embeds [B, L, D]; features [S, D] or [S, T, D]; mask [B, L] bool; result [B, L, D]

    Raises:
        DataError: when the number of feature rows is not the number of image positions.
    """
    rows = features.reshape(-1, features.shape[-1])  # [S, D]
    n_positions = int(mask.sum())
    if rows.shape[0] != n_positions:
        raise DataError(
            f"the images give {rows.shape[0]} image tokens but the text has {n_positions} image positions",
            f"a batch of {mask.shape[0]} sequences of {mask.shape[1]} tokens",
            "every image needs one <image> in its text, expanded to as many positions as the connector gives tokens",
        )
    # Row-major over mask and rows alike: the n-th true position takes the n-th row.
    return embeds.masked_scatter(mask.unsqueeze(-1).expand_as(embeds), rows.to(embeds.dtype))  # [B, L, D]
