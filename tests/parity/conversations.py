"""How a recorded conversation becomes a sample, a template and a tokenizer of ours, and why the two may differ."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tests.parity.golden import asset
from vlmrun.data import templates
from vlmrun.data.compat import labels, settings
from vlmrun.data.encode import Encoded, encode
from vlmrun.data.formats import llava
from vlmrun.data.sample import IMAGE_TAG, Rejected, Sample
from vlmrun.data.templates import Template
from vlmrun.errors import DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.tokenizers import load_tokenizer

UNLIMITED = 10**6
PROJECTS = {"llava": "llava", "kollava": "kollava", "dense": "denseconnector", "bunny": "bunny"}
# The value of the version argument in the original command line -> our template, where the names differ.
VERSIONS = {
    ("llava", "v0"): "llava_v0",
    ("bunny", "minicpm"): "vicuna_v1",
    ("bunny", "phi3"): "bunny",
    ("bunny", "llama"): "bunny_llama",
    ("kollava", "mistral"): "kollava_mistral",
    ("kollava", "v0"): "llava_v0",
    ("denseconnector", "v0"): "llava_v0",
}


def project(file: str) -> Any:
    """Whose recording a file is."""
    return PROJECTS[file.rpartition("/")[2].split("_")[0]]


def template(case: dict[str, Any], project: str) -> Template:
    """The template that the version argument means; an unknown name meant vicuna_v1, or bunny."""
    name = VERSIONS.get((project, case["version"]), case["version"])
    if name == "v1" or name not in templates.TEMPLATES:
        name = "bunny" if project == "bunny" else "vicuna_v1"
    return templates.marked(name, ["<im_start>", "<im_end>"] if case["mm_use_im_start_end"] else None)


def trained_template(case: dict[str, Any], project: str) -> Template:
    """The template that upstream really trained with."""
    return settings.effective(template(case, project), v0_is_v1=case["version"] == "v0", llama3_system_header=True)


def tokenizer(case: dict[str, Any], project: str) -> Any:
    """The recorded tokenizer with the roles that the original entry point gave its tokens."""
    options = case["tokenizer_kwargs"]
    legacy = options.get("legacy")
    eos = case["pad_token"] if (project, case["version"]) == ("bunny", "llama") else None
    return _tokenizer(case["tokenizer"], legacy, tuple(case["added_special_tokens"]), case["pad_token"], eos)


@lru_cache
def _as_recorded(name: str, legacy: bool | None, pad: str) -> Any:
    """Making one of a SentencePiece file takes longer than copying it."""
    return load_tokenizer(asset(f"tokenizers/{name}"), legacy=legacy, tokens={"pad": pad})


@lru_cache
def _tokenizer(name: str, legacy: bool | None, added: tuple[str, ...], pad: str, eos: str | None) -> Any:
    found = copy.deepcopy(_as_recorded(name, legacy, "<unk>" if pad in added else pad))
    found.add_tokens(list(added), special_tokens=True)
    found.pad_token = pad
    if eos is not None:
        found.eos_token = eos
    return found


def upstream_sample(case: dict[str, Any], template: Template, project: Any) -> Sample:
    """The record as upstream takes it, with one image for every tag that stays.

    Raises:
        DataError: where upstream stops.
    """
    raw = _record(case, [message["value"] for message in case["conversations"]], 1, as_it_is=True)
    assert isinstance(raw, Sample)
    dropped = (
        raw.turns[0].role == "assistant" and not settings.falls_through(template, project) and template.keep_question
    )
    tags = sum(IMAGE_TAG in turn.text for turn in raw.turns[dropped:]) if case["has_image"] else 0
    return settings.as_upstream(replace(raw, images=("x",) * max(tags, case["has_image"])), template, project)


def own_sample(case: dict[str, Any]) -> Sample | Rejected:
    """The record by vlmrun's own reader, with one image for every tag that upstream's rewriting left."""
    plain = [message["value"] for message in case["conversations"]]
    if not case["has_image"]:
        return _record(case, plain, 0)
    texts = [settings.one_tag(text) for text in plain]
    return _record(case, texts, max(1, sum(text.count(IMAGE_TAG) for text in texts)))


def _record(case: dict[str, Any], texts: list[str], n_images: int, *, as_it_is: bool = False) -> Sample | Rejected:
    messages = [{"from": m["from"], "value": text} for m, text in zip(case["conversations"], texts, strict=True)]
    record = {"id": case["id"], "image": ["x"] * n_images, "conversations": messages}
    return llava.parse(record, ("case", 0), as_it_is=as_it_is)


def upstream_labels(case: dict[str, Any]) -> list[int]:
    """Upstream sets the label of an image to ignore later, when it splices the image in."""
    return [IGNORE if label == IMAGE_TOKEN else label for label in case["labels"]]


def by_default(case: dict[str, Any], sample: Sample, template: Template, project: str) -> Encoded:
    """What vlmrun trains without any compat; upstream cuts samples with images later, in its collator.

    Raises:
        DataError: when vlmrun refuses the sample.
    """
    cut = not sample.images and template.keep_question and not _uncut(case, project)
    return encode(
        sample,
        template,
        tokenizer(case, project),
        image_tokens=[1] * len(sample.images),
        max_length=case["model_max_length"] if cut else UNLIMITED,
    )


def _uncut(case: dict[str, Any], project: str) -> bool:
    return case["has_image"] or (project == "kollava" and case["version"] == "mpt")


@dataclass(frozen=True)
class Deviation:
    """A class of records that vlmrun takes otherwise than upstream, by a property of record and template.

    Args:
        kind: what differs: the record is `refused`, its `ids` differ, its `labels` differ.
    """

    name: str
    kind: str
    reason: str
    applies: Callable[[dict[str, Any], Template, str], bool]


def _texts(case: dict[str, Any]) -> list[str]:
    return [message["value"] for message in case["conversations"]]


def _image_tags(case: dict[str, Any]) -> list[int]:
    return [text.count(IMAGE_TAG) for text in _texts(case)]


def _roles_wrong(case: dict[str, Any], template: Template, project: str) -> bool:
    roles = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
    said = [roles.get(message["from"]) for message in case["conversations"]]
    return said != ["human", "gpt"] * (len(said) // 2) and said != [*["human", "gpt"] * (len(said) // 2), "human"]


def _empty_turn(case: dict[str, Any], template: Template, project: str) -> bool:
    return any(not text.strip() for text in _texts(case))


def _unanswered(case: dict[str, Any], template: Template, project: str) -> bool:
    return case["conversations"][-1]["from"] == "human"


def _picture_without_tag(case: dict[str, Any], template: Template, project: str) -> bool:
    return bool(case["has_image"]) and not any(_image_tags(case))


def _other_role_names(case: dict[str, Any], template: Template, project: str) -> bool:
    return any(message["from"] not in ("human", "gpt") for message in case["conversations"])


def _tag_alone(case: dict[str, Any], template: Template, project: str) -> bool:
    return not case["has_image"] and any(_image_tags(case))


def _never_cut(case: dict[str, Any], template: Template, project: str) -> bool:
    """The text is longer than the limit, and upstream leaves cutting it to its collator."""
    return len(case["input_ids"]) > case["model_max_length"] and _uncut(case, project)


def _after_special(case: dict[str, Any], template: Template, project: str) -> bool:
    """KoLLaVA's old library and a tokenizer of `legacy: false`: text follows a special token somewhere."""
    if project != "kollava" or tokenizer(case, project).init_kwargs.get("legacy") is not False:
        return False
    special = tokenizer(case, project).all_special_tokens
    several = len(case["conversations"]) > 2 and template.answer_end in special
    return several or any(token in text for text in _texts(case) for token in special)


def _always(case: dict[str, Any], template: Template, project: str) -> bool:
    return True


def _of(*names: str, of: str | None = None) -> Callable[[dict[str, Any], Template, str], bool]:
    return lambda case, template, project: template.name in names and of in (None, project)


def _headers_short(case: dict[str, Any], template: Template, project: str) -> bool:
    return project in ("llava", "denseconnector") and template.name in ("mpt", "mpt_v0", "chatml_direct")


def _caption_tag_alone(case: dict[str, Any], template: Template, project: str) -> bool:
    return template.name == "plain" and not case["has_image"]


def _joined_newline(case: dict[str, Any], template: Template, project: str) -> bool:
    """The answer begins with a line break, which the tokenizer joins to the one that ends the header."""
    answers = [message["value"] for message in case["conversations"] if message["from"] == "gpt"]
    joined = template.assistant_start.endswith("\n") and template.answer_start == ""
    return joined and any(text.startswith("\n") for text in answers)


def _cut_to_nothing(case: dict[str, Any], template: Template, project: str) -> bool:
    return case["labels"] is not None and len(case["input_ids"]) >= case["model_max_length"]


DEVIATIONS = (
    Deviation(
        "roles_out_of_order",
        "refused",
        "The first message is not from human, or the same side speaks twice. Upstream drops a leading answer; its "
        "`### ` path takes any order.",
        _roles_wrong,
    ),
    Deviation(
        "other_role_names",
        "refused",
        "A role other than human and gpt: upstream's `### ` path trains it under the name `unknown`. vlmrun takes "
        "`user` and `assistant` as what they say, and refuses the rest.",
        _other_role_names,
    ),
    Deviation(
        "empty_turn",
        "refused",
        "A question or an answer without text: upstream's templates lose the turn's separators, and with them its "
        "labels or the shape of the conversation.",
        _empty_turn,
    ),
    Deviation("unanswered_question", "refused", "The last question has no answer to learn.", _unanswered),
    Deviation(
        "picture_without_tag",
        "refused",
        "The record names an image that no `<image>` shows: upstream trains the text and skips the image.",
        _picture_without_tag,
    ),
    Deviation(
        "caption_without_picture",
        "refused",
        "A caption without an image: upstream's plain template shows it the next sample's.",
        _caption_tag_alone,
    ),
    Deviation(
        "tag_without_picture",
        "refused",
        "The text has an `<image>` but the record names no image. Upstream trains the tag as ordinary text; "
        "KoLLaVA's mpt path as an image, the next sample's.",
        _tag_alone,
    ),
    Deviation(
        "nothing_left_to_learn",
        "refused",
        "After cutting at the maximum length no token of an answer is left.",
        _cut_to_nothing,
    ),
    Deviation(
        "openai_role_names",
        "ids",
        "Upstream's `### ` path calls the roles `user` and `assistant` unknown; vlmrun takes them as what they say.",
        _other_role_names,
    ),
    Deviation(
        "falls_through",
        "ids",
        "Upstream never trains the template that the flag names: it falls through to the `### ` path.",
        _of("phi", "kollava_mistral"),
    ),
    Deviation(
        "llama_3_opening",
        "ids",
        "Upstream's answers stand under a header that says `system`, and the text starts with two begin tokens.",
        _of("llama_3"),
    ),
    Deviation(
        "transformers_4_31",
        "ids",
        "With `legacy: false`, transformers 4.31 splits text after a special token as nothing since does: it tokenises "
        "with a space in front and strips the mark afterwards.",
        _after_special,
    ),
    Deviation(
        "marks_of_roles_learnt",
        "labels",
        "Upstream's `### ` path learns role names and the opening of the user's turns as well, and lets the labels "
        "drift with tokenizers that join them otherwise. vlmrun learns the answer and the `###` after it.",
        _of("llava_v0", "v0_mmtag"),
    ),
    Deviation(
        "rounds_counted_short",
        "labels",
        "Upstream's mpt arithmetic is made for one tokenizer; with others the labels begin or end a token too early, "
        "or all are dropped.",
        _headers_short,
    ),
    Deviation(
        "joined_newline",
        "labels",
        "One token holds the end of the header and the first line break of the answer. vlmrun learns a token that "
        "holds any of the answer; upstream counts tokens of the header on its own.",
        _joined_newline,
    ),
)


def deviations(case: dict[str, Any], template: Template, project: str, kind: str) -> list[Deviation]:
    """The classes of this kind that a record belongs to."""
    return [found for found in DEVIATIONS if found.kind == kind and found.applies(case, template, project)]


def masked(case: dict[str, Any], project: Any) -> labels.Masked:
    """A record under `compat`.

    Raises:
        DataError: where upstream stops.
    """
    template = trained_template(case, project)
    sample = upstream_sample(case, template, project)
    return labels.mask(sample, template, tokenizer(case, project), project, max_length=case["model_max_length"])


def compare(case: dict[str, Any], project: Any) -> tuple[str, str]:
    """How vlmrun's default and upstream's result of a record stand: (`equal` | kind | `unexplained`, class or what).

    A record that upstream drops for a mismatch is `ids`-equal at most; its labels are right by default (class
    `dropped_by_upstream`).
    """
    wanted = template(case, project)
    if case["version"] == "v0":
        wanted = trained_template(case, project)  # the class v0_is_v1 is the whole file
    sample = own_sample(case)
    try:
        if isinstance(sample, Rejected):
            raise DataError(sample.what)
        found = by_default(case, sample, wanted, project)
    except DataError as error:
        return _explained(case, wanted, project, "refused", str(error))
    if found.input_ids != case["input_ids"]:
        return _explained(case, wanted, project, "ids", "ids")
    if found.labels == upstream_labels(case):
        return "equal", ""
    if case["result"] == "mismatch":
        return "labels", "dropped_by_upstream"
    return _explained(case, wanted, project, "labels", "labels")


def _explained(case: dict[str, Any], template: Template, project: str, kind: str, what: str) -> tuple[str, str]:
    classes = deviations(case, template, project, kind)
    return (kind, classes[0].name) if classes else ("unexplained", what)
