"""The VLM: an LLM that reads text embeddings with image features spliced in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmrun.arch.tiles import Layout
from vlmrun.config.schema import Slices, Tiles
from vlmrun.errors import DataError
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.model import packed_rows
from vlmrun.model.connectors.base import Connector
from vlmrun.model.head import Head, causal_lm
from vlmrun.model.loss import count
from vlmrun.model.splice import splice
from vlmrun.model.tiles import NEWLINE, grids_of, tiling
from vlmrun.model.tower_cache import TowerCache
from vlmrun.model.towers.base import Grids, Tower
from vlmrun.model.ulysses import Ulysses


@dataclass
class VLMOutput:
    """What a forward pass gives.

    Attributes:
        logits: None when the loss was computed without them (`head.Head`).
        loss_sum: of the losses of all supervised tokens, in fp32; in the graph also when there are none. None when no
            labels were given.
        n_supervised: how many tokens that sums over.
    """

    logits: torch.Tensor | None
    loss_sum: torch.Tensor | None = None
    n_supervised: int = 0

    @property
    def loss(self) -> torch.Tensor | None:
        """Their mean; nan when nothing is supervised."""
        return None if self.loss_sum is None else self.loss_sum / self.n_supervised


class VLM(nn.Module):
    """An LLM, a vision tower and the connector between them.

    `image_tokens(layout)` says how many positions an image takes in the text, None being an ordinary one.

    Every forward pass runs tower, connector, embedding, LLM in this order, also for a batch without an image: ranks
    that differ in the order of their modules hang or silently diverge under ZeRO.
    """

    def __init__(self, llm: nn.Module, tower: Tower, connector: Connector, tiles: Tiles | Slices | None = None) -> None:
        super().__init__()
        self.llm = llm
        self.tower = tower
        self.connector = connector
        self.image_tokens = tiling(connector.tokens(tower.n_patches), tiles)
        self.sequence: Ulysses | None = None  # when several ranks share every sequence of a training batch
        self.head = Head(llm)  # how losses are computed: from full logits, unless training asks for another way
        self.tower_cache: TowerCache | None = None  # where features of a frozen tower are kept
        self.tower_no_grad = False  # compat.tower_no_grad: whatever is tuned, no gradient reaches the tower

    @property
    def image_size(self) -> int:
        """Pixels along an edge of what the tower takes."""
        return self.tower.image_size

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        layouts: Sequence[Layout | None] | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> VLMOutput:
        """Runs the model on right-padded, expanded ids.

        Args:
            input_ids: `IMAGE_TOKEN` where the next feature row goes, row-major over the batch.
            pixels: None for a batch without images; one all-zero image and no image position means the same.
            labels: next-token targets before shifting, -100 where unsupervised.
            layouts: how each image was cut into tiles, which are all in `pixels`; None: none was.
            position_ids: of rows that hold several samples: 0 where one begins, and padding counted as one more.

        Shape:
            input_ids, attention_mask, labels, position_ids [B, L]; pixels [S, 3, H, W]; logits [B, L, V]

        Raises:
            DataError: when images and image positions do not fit.
        """
        embeds = self.embed(input_ids, pixels, layouts)  # [B, L, D]
        inputs: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": attention_mask}
        if position_ids is not None:
            inputs = packed_rows.inputs(self.llm, embeds, position_ids)  # under flash attention one row: [1, B L, D]
        if labels is None:
            logits = causal_lm(self.llm)(**inputs, use_cache=False).logits
            return VLMOutput(logits.reshape(*input_ids.shape, -1))  # [B, L, V]
        if self.sequence is not None:
            inputs, labels = self.sequence.cut(inputs, labels)  # this rank's part: [B, L / ranks, D], [B, L / ranks]
        loss_sum, logits = self.head.loss_sum(self.llm, labels, inputs)  # scalar; [B, L, V] or None
        if self.sequence is not None:
            loss_sum = self.sequence.total(loss_sum)
        return VLMOutput(logits, loss_sum, count(labels))

    def embed(
        self,
        input_ids: torch.Tensor,
        pixels: torch.Tensor | None,
        layouts: Sequence[Layout | None] | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings with image features in their places.

        Args:
            features: what `features` gave for these images, one after another, in place of `pixels`.

        Shape:
            input_ids [B, L]; pixels [S, 3, H, W], S tiles of all images of the batch; result [B, L, D]
        """
        mask = input_ids == IMAGE_TOKEN  # [B, L]
        embedding = self.llm.get_input_embeddings()  # type: ignore[operator]
        # The id of an image is no row of the table: any other stands in, and the feature replaces what it gives.
        embeds: torch.Tensor = embedding(input_ids.masked_fill(mask, 0))  # [B, L, D]
        if features is not None:
            return splice(embeds, features, mask) if mask.any() else embeds
        blank = self._is_blank(mask, pixels)
        if pixels is None:
            pixels = torch.zeros(1, 3, self.image_size, self.image_size, device=input_ids.device)
        features = self.features(pixels, [None] * len(pixels) if blank or layouts is None else layouts)  # [rows, D]
        if blank:
            # The blank image's features enter times zero: connector and tower stay in the graph on every rank.
            return embeds + features.sum().to(embeds.dtype) * 0
        return splice(embeds, features, mask)

    @torch.no_grad()
    def generate(  # noqa: PLR0913 - a batch and how to continue it
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixels: torch.Tensor | None,
        *,
        max_new_tokens: int,
        eos_ids: list[int],
        layouts: Sequence[Layout | None] | None = None,
        streamer: Any = None,
        together: bool = False,
        features: torch.Tensor | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """Continues prompts, greedily unless asked otherwise; call `eval()` first.

        Args:
            input_ids: expanded ids, left-padded when prompts differ in length.
            streamer: a transformers streamer, for one prompt.
            together: every rank generates, and continues until the last one is done: sharded weights need all of them.
            features: as in `embed`.
            sampling: values of transformers' GenerationConfig, such as `do_sample`, `temperature`, `num_beams`.

        Shape:
            input_ids, attention_mask [B, L]; result [B, T], new ids only, rows that ended filled up with `eos_ids[0]`
        """
        from transformers import GenerationConfig

        assert not self.training, "generate in eval mode: dropout would change the answers"
        embeds = self.embed(input_ids, pixels, layouts, features)  # [B, L, D]
        # LoRA layers live inside the base model, so PEFT's own generate, which swaps configs about, is not needed.
        llm: Any = self.llm
        if hasattr(llm, "peft_config"):
            llm = llm.get_base_model()
        # A hub folder's generation_config.json (sampling, penalties) fills whatever is unset, so it is set aside.
        kept = llm.generation_config
        llm.generation_config = GenerationConfig()
        alone = contextlib.nullcontext() if self.sequence is None else self.sequence.apart()
        try:
            with alone:
                ids: torch.Tensor = llm.generate(  # [B, T], new ids: of embeddings no prompt comes back
                    inputs_embeds=embeds,
                    attention_mask=attention_mask.long(),
                    generation_config=GenerationConfig(
                        **{"do_sample": False, "num_beams": 1, **(sampling or {})},
                        max_new_tokens=max_new_tokens,
                        eos_token_id=list(eos_ids),
                        pad_token_id=eos_ids[0],
                    ),
                    streamer=streamer,
                    synced_gpus=together,
                )
        finally:
            llm.generation_config = kept
        return ids

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes activations in the backward pass: in the LLM and, when it is trained, in the tower."""
        llm: Any = self.llm
        if enabled:
            llm.activation_checkpointing_enable({"use_reentrant": False})
        else:
            llm.activation_checkpointing_disable()
        self.tower.set_gradient_checkpointing(enabled and self._trains_tower())

    def _trains_tower(self) -> bool:
        return any(parameter.requires_grad for parameter in self.tower.parameters())

    def features(self, pixels: torch.Tensor, layouts: Sequence[Layout | None]) -> torch.Tensor:
        """Rows for the image positions, of all images one after another.

        Shape:
            pixels [S, 3, H, W]; result [rows, D], as many rows as the text has image positions
        """
        wanted = self._trains_tower() and not self.tower_no_grad
        # Images of their own shapes; a tower and a connector that take them are given them.
        shapes = () if (grids := grids_of(layouts)) is None else (grids,)
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            layers = self._layers(pixels.to(self.tower.dtype), *shapes)  # one [S, P, Dv] for each requested layer
        # An identity has no parameters; it hands features to the LLM as they will be added there.
        weight = next(self.connector.parameters(), None)
        dtype = self.llm.get_input_embeddings().weight.dtype if weight is None else weight.dtype  # type: ignore[operator]
        features = self.connector([layer.to(dtype) for layer in layers], *shapes)  # [S, T, D]
        newline = getattr(self.connector, NEWLINE, None)  # [D]
        rows = self.image_tokens.merged(features, layouts, newline)  # [rows, D]
        # In the graph on every rank, whether or not an image of this batch was cut.
        return rows if newline is None else rows + newline.sum() * 0

    def _layers(self, pixels: torch.Tensor, *shapes: Grids) -> list[torch.Tensor]:
        if self.tower_cache is None:
            layers: list[torch.Tensor] = self.tower(pixels, *shapes)
            return layers
        return self.tower_cache.features(self.tower, pixels)

    @staticmethod
    def _is_blank(mask: torch.Tensor, pixels: torch.Tensor | None) -> bool:
        """Whether the batch has no image: none given, or the collator's one blank image."""
        if mask.any():
            if pixels is None:
                raise DataError(
                    f"the text has {int(mask.sum())} image positions but no image was given",
                    f"a batch of {mask.shape[0]} sequences",
                    "give the images, or take <image> out of the text",
                )
            return False
        return pixels is None or (pixels.shape[0] == 1 and not pixels.any())
