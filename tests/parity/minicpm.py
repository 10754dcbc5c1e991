"""The recordings of MiniCPM-V's preprocessing (golden g5_minicpmv), and how they are asked of vlmrun."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from tests.integration.jobs import NO_COMPAT
from tests.parity import golden
from vlmrun.config.schema import Compat, Slices
from vlmrun.data import templates
from vlmrun.data.compat import minicpm as minicpm_labels
from vlmrun.data.encode import Encoded, tokenize
from vlmrun.data.encoder import Encoder
from vlmrun.data.formats import minicpm
from vlmrun.data.images import grid
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.sample import Rejected, Sample, Turn
from vlmrun.data.system import placed
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.tiles import Tiling
from vlmrun.model.tokenizers import load_tokenizer

SET = "g5_minicpmv"
TEMPLATES = {"minicpm": "minicpm_v2", "llama3": "minicpm_v25", "qwen": "minicpm_v26"}
UNLIMITED = 1 << 40


@lru_cache
def tokenizer(name: str) -> Any:
    """The tokenizer of a case."""
    return load_tokenizer(golden.asset(f"tokenizers/{name}"), tokens={"pad": "<unk>"})


def template(case: dict[str, Any]) -> templates.Template:
    """The template of a case."""
    return templates.get(TEMPLATES[case["llm_type"]])


def is_cut(case: dict[str, Any]) -> bool:
    """Whether upstream brings its images to whole patches: without slice_config it does not, and ours always does."""
    return case["slice_config"] is not None


def rules(case: dict[str, Any]) -> Slices:
    """How its images are cut (`is_cut`), and marked."""
    config, is_new = case["slice_config"], case["llm_type"] == "qwen"
    return Slices(
        max_slices=config["max_slice_nums"],
        resolution=config["scale_resolution"],
        marks="flat" if is_new else "nested",
        image_ids="sliced" if is_new else "never",
    )


def refused(conversation: list[dict[str, str]]) -> str | None:
    """Why the reader takes no such conversation, its pictures aside."""
    messages = [m | {"content": m["content"].replace("<image>", "[picture]")} for m in conversation]
    found = minicpm.parse({"id": "x", "conversations": messages}, ("file", 0))
    return found.what if isinstance(found, Rejected) else None


def conversation(case: dict[str, Any], *, compat: bool) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation whose text holds the blocks of its pictures already."""
    spans = [len(run[0]) // len("<unk>") for m in case["conversation"] for run in _runs(m["content"])]
    said = case["conversation"]
    text = said[0]["content"] if said and said[0]["role"] == "system" else None
    turns = [Turn(m["role"], re.sub("(<unk>)+", grid.TILE, m["content"])) for m in said[text is not None :]]
    known = tokenizer(case["tokenizer"])
    shown = placed(template(case), Sample(case["id"], (), tuple(turns), ("file", 0), system=text))
    pieces = shown.render(turns, images=False)
    marks = ["<image>"] * sum(piece.text.count("<image>") for piece in pieces)  # the marks themselves
    ids, labels = tokenize(pieces, known, blocks=marks)
    relabel = minicpm_labels.relabel(shown, known) if compat else None
    labels = labels if relabel is None else relabel(ids)
    wide_ids, wide_labels, _ = widened(Encoded(ids, labels, False, 0, tuple(spans)), known)
    length = case["max_length"] or UNLIMITED
    return wide_ids[:length], wide_labels[:length]


def _runs(text: str) -> list[re.Match[str]]:
    return list(re.finditer("(<unk>)+", text))


def sample(case: dict[str, Any]) -> Sample | Rejected:
    """A whole record of the preprocessing, as the reader takes it."""
    images = case["images"]
    named = images["<image>"] if list(images) == ["<image>"] else images
    return minicpm.parse({"id": case["id"], "image": named, "conversations": case["conversations"]}, ("file", 0))


def encoder(case: dict[str, Any]) -> Encoder:
    """What encodes it, with upstream's labels."""
    cut = rules(case)
    edge = cut.resolution
    preprocessor = {"size": {"height": edge, "width": edge}, "patch_size": case["patch_size"]}
    return Encoder(
        template=template(case),
        tokenizer=tokenizer(case["tokenizer"]),
        image_transform=ImageTransform(preprocessor, cut),
        aspect="slices",
        image_tokens=Tiling(case["query_nums"], "flat"),
        max_length=case["max_length"] or UNLIMITED,
        compat=Compat.model_validate(NO_COMPAT | {"labels": "minicpm"}),
        slices=cut,
    )


def widened(encoded: Encoded, known: Any) -> tuple[list[int], list[int], list[list[int]]]:
    """Ids with <unk> where features go, labels, and where each run of features lies."""
    unk, spans = known.convert_tokens_to_ids("<unk>"), iter(encoded.spans)
    ids: list[int] = []
    labels: list[int] = []
    bounds = []
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        times = next(spans) if token == IMAGE_TOKEN else 1
        if token == IMAGE_TOKEN:
            bounds.append([len(ids), len(ids) + times])
        ids += [unk if token == IMAGE_TOKEN else token] * times
        labels += [label] * times
    return ids, labels, bounds


def unshifted(target: list[int]) -> list[int]:
    """Upstream's targets at the tokens that they are, as vlmrun's labels stand."""
    assert target[-1] == IGNORE
    return [IGNORE, *target[:-1]]


def without_second_end(target: list[int], ids: list[int]) -> list[int]:
    """The labels without the end tokens that upstream has the model learn once more behind an answer."""
    return [label if label in (token, IGNORE) else IGNORE for label, token in zip(unshifted(target), ids, strict=True)]


def differs_on_purpose(case: dict[str, Any]) -> bool:
    """Whether upstream's labels follow from something else than who said what: role and end tokens that a person typed
    count for it, and of a line break at the beginning of a 2.6 answer it skips the token."""
    special = [text for text in tokenizer(case["tokenizer"]).get_added_vocab() if "<|" in text]
    typed = any(text in m["content"] for m in case["conversation"] for text in special)
    answers = [m["content"] for m in case["conversation"] if m["role"] == "assistant"]
    return typed or (case["llm_type"] == "qwen" and any(text.startswith("\n") for text in answers))
