"""One sample as training will see it, and lengths for `data lint`: tokenizer and config.json, no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from vlmrun.arch.connectors import arithmetic
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.paths import locate
from vlmrun.config.schema import ModelConfig, Slices, Tiles, TrainStage
from vlmrun.data import formats, lint, marks, templates
from vlmrun.data.compat import settings
from vlmrun.data.encode import Encoded, tokenize
from vlmrun.data.encoder import Encoder
from vlmrun.data.images import grid
from vlmrun.data.images.finding import folder_of
from vlmrun.data.images.fitting import best_grid
from vlmrun.data.images.loading import open_image
from vlmrun.data.images.seeing import view_of
from vlmrun.data.images.transform import ImageLayout, ImageTransform
from vlmrun.data.sample import IMAGE_TAG, Rejected, Sample
from vlmrun.errors import CheckpointError, DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.inspect.sizes import Sizes
from vlmrun.model.parts import added_tokens
from vlmrun.model.tiles import tiling
from vlmrun.model.tokenizers import load_tokenizer
from vlmrun.train.samples import template_of

_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Looker:
    """An encoder without the preparation of pixels, and how images would be cut."""

    encoder: Encoder
    edge: int
    tiles: Tiles | Slices | None  # None: images are not cut

    def layout(self, size: tuple[int, int] | None) -> ImageLayout | None:
        """How an image of this size is cut."""
        if self.tiles is None or size is None:
            return None
        if isinstance(self.tiles, Slices):
            return ImageLayout(grid.best_grid(size, self.tiles), size)
        width, height = best_grid(size, [(width, height) for width, height in self.tiles.grids])
        return ImageLayout((width // self.edge, height // self.edge), size)

    def measure(self) -> lint.Measure:
        """For `data lint`."""
        encoder = self.encoder
        return lint.Measure(
            encoder.template,
            encoder.tokenizer,
            lambda size: self._positions(self.layout(size)),
            encoder.max_length,
        )

    def _positions(self, layout: ImageLayout | None) -> int:
        """Positions that an image takes, the marks around its slices among them."""
        blocks = self.encoder.blocks((layout,))
        if blocks is None:
            return self.encoder.image_tokens(layout)
        ids, _ = tokenize([templates.Piece(IMAGE_TAG, False, alone=True)], self.encoder.tokenizer, blocks=blocks)
        return sum(token != IMAGE_TOKEN for token in ids) + sum(self.encoder.spans((layout,)))


def tokenizer_of(model: ModelConfig) -> Any:
    """The tokenizer as the LLM's loader makes it, with the tokens that the model adds.

    Raises:
        CheckpointError: when there is none.
    """
    arguments = model.llm.arguments
    source = arguments.get("tokenizer") or arguments.get("path")
    if not source:
        raise CheckpointError("the tokenizer's place is not given", "model.llm", "set model.llm.tokenizer")
    tokenizer = load_tokenizer(locate(str(source)), legacy=arguments.get("legacy"), tokens=arguments.get("tokens"))
    known = tokenizer.get_vocab()
    missing = [text for text in added_tokens(model) if text not in known]
    if missing:
        from tokenizers import AddedToken

        tokenizer.add_tokens(
            [AddedToken(text, normalized=False, special=True) for text in missing], special_tokens=True
        )
    return tokenizer


def looker(model: ModelConfig, stage: TrainStage, sizes: Sizes) -> Looker:
    """Everything but weights."""
    connector = arithmetic(model.connector)
    assert connector is not None, "checked: the connector's target and arguments are right"
    connector.check_widths(sizes.vision_dim, sizes.llm_dim)
    cuts = stage.image_aspect in ("anyres", "slices")
    encoder = Encoder(
        template=template_of(model, stage),
        tokenizer=tokenizer_of(model),
        image_transform=cast(ImageTransform, None),  # no pixels are made
        aspect=stage.image_aspect,
        image_tokens=tiling(connector.tokens(sizes.n_patches), model.tiles),
        max_length=model.max_length,
        compat=stage.compat,
        view=view_of(derived.image_background(stage)),
        slices=derived.slices(model),
    )
    return Looker(encoder, sizes.image_size, model.tiles if cuts else None)


def show(job: StageJob, index: int, sizes: Sizes) -> dict[str, Any]:
    """One sample of a train stage, by its place among all records of the stage's data.

    Returns:
        The record, and how it is trained; docs/guides/data.md names the keys.

    Raises:
        DataError: when there is no such record, or it cannot be used.
    """
    assert isinstance(job.stage, TrainStage)
    look = looker(job.model, job.stage, sizes)
    name, sample = _sample(job, index, look.encoder)
    folder, view = folder_of(job.data[name]), look.encoder.view
    layouts = tuple(look.layout(open_image(folder, image, sample.where, view).size) for image in sample.images)
    counts = [look.encoder.image_tokens(layout) for layout in layouts]
    spans = look.encoder.spans(layouts)
    whole = replace(look.encoder, max_length=_UNLIMITED).encode(sample, layouts)
    problem = None
    kept = whole.input_ids
    try:
        kept = look.encoder.encode(sample, layouts).input_ids
    except DataError as error:
        problem = error.problems[0].what
    return {
        "stage": job.name,
        "data": name,
        "index": index,
        "source": list(sample.source),
        "id": sample.id,
        "images": [_image(*each) for each in zip(sample.images, layouts, counts, strict=True)],
        "system": sample.system,
        "turns": [{"role": turn.role, "text": turn.text} for turn in sample.turns],
        "template": look.encoder.template.name,
        "input_ids": whole.input_ids,
        "labels": whole.labels,
        "pieces": list(_pieces(whole, spans, look.encoder.tokenizer, len(kept))),
        "n_tokens": _length(whole.input_ids, spans),
        "n_kept": _length(kept, spans),
        "n_supervised": sum(label != IGNORE for label in whole.labels[: len(kept)]),
        "n_image_tokens": sum(counts),
        "max_length": look.encoder.max_length,
        "truncated": len(kept) < len(whole.input_ids) or problem is not None,
        "problem": problem,
    }


def _sample(job: StageJob, index: int, encoder: Encoder) -> tuple[str, Sample]:
    """The name of the data, and the record at this place, counted through all of the stage's data."""
    assert isinstance(job.stage, TrainStage)
    before = 0
    for name in job.stage.data:
        config = job.data[name]
        for record in formats.of(config, as_it_is=encoder.as_upstream):
            if before == index:
                if isinstance(record, Rejected):
                    raise DataError([record.problem])
                sample = (
                    settings.as_upstream(record, encoder.template, encoder.labels_of) if encoder.as_upstream else record
                )
                return name, sample
            before += 1
    where = ", ".join(job.stage.data)
    raise DataError(f"there is no record {index}: there are {before}", where, f"give a number from 0 to {before - 1}")


def _image(name: str, layout: ImageLayout | None, count: int) -> dict[str, Any]:
    return {"name": name, "tokens": count, "grid": None if layout is None or layout.grid is None else list(layout.grid)}


def _length(ids: Sequence[int], counts: Sequence[int]) -> int:
    n_images = sum(token == IMAGE_TOKEN for token in ids)
    return len(ids) - n_images + sum(counts[:n_images])


def _pieces(encoded: Encoded, counts: Sequence[int], tokenizer: Any, n_kept: int) -> Iterator[dict[str, Any]]:
    """Stretches of equal treatment: text that is supervised or not, kept or cut off, and images between."""
    runs: list[tuple[tuple[bool, bool, bool], list[int]]] = []
    for place, (token, label) in enumerate(zip(encoded.input_ids, encoded.labels, strict=True)):
        key = (token == IMAGE_TOKEN, label != IGNORE, place < n_kept)
        if runs and runs[-1][0] == key and token != IMAGE_TOKEN:
            runs[-1][1].append(token)
        else:
            runs.append((key, [token]))
    images = iter(counts)
    for (is_image, learnt, is_kept), tokens in runs:
        if is_image:
            yield {"image": True, "n_tokens": next(images), "supervised": False, "kept": is_kept}
        else:
            text = _text(tokens, tokenizer)
            yield {"text": text, "n_tokens": len(tokens), "supervised": learnt, "kept": is_kept}


def _text(tokens: Sequence[int], tokenizer: Any) -> str:
    """Decoded with its special tokens; the leading space that some decoders drop is put back."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    first = tokenizer.convert_ids_to_tokens(tokens[0])
    return " " + text if isinstance(first, str) and first.startswith("▁") and not text.startswith(" ") else text


def rules(job: StageJob, name: str, sizes: Sizes | None) -> lint.Rules:
    """What `data lint` asks of one of a stage's data.

    Args:
        sizes: None: lengths are not looked at.
    """
    config = job.data[name]
    base = lint.Rules(
        format=config.format,
        split=config.split,
        fields=config.fields,
        ignore_keys=config.ignore_keys,
        images=folder_of(config),
        records=config.about.records if config.about else None,
    )
    if not isinstance(job.stage, TrainStage) or sizes is None:
        return base
    look = looker(job.model, job.stage, sizes)
    special = look.encoder.tokenizer.all_special_tokens
    known = marks.marks_of(look.encoder.template, special)
    return replace(base, view=look.encoder.view, measure=look.measure(), marks=known)


def rules_of_file(options: Mapping[str, Any]) -> lint.Rules:
    """What `data lint FILE` asks, from the words of the command line."""
    template = templates.get(options["template"]) if options["template"] else None
    special: Sequence[str] = ()
    measure = None
    if options["tokenizer"]:
        tokenizer = load_tokenizer(locate(options["tokenizer"]))
        special = tokenizer.all_special_tokens
        if template is not None and options["max_length"]:
            count = options["image_tokens"]
            measure = lint.Measure(template, tokenizer, lambda size: count, options["max_length"])
    base = lint.rules_of(options)
    return replace(base, template=template, measure=measure, marks=marks.marks_of(template, special))
