"""What makes a Llava folder usable by a processor: templates, chat template, image processor, stop tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.arch.towers import n_patches
from vlmrun.data import templates
from vlmrun.data.prompts import stop_ids
from vlmrun.data.sample import IMAGE_TAG
from vlmrun.data.templates import Template
from vlmrun.formats.base import GENERATION, PREPROCESSOR, TOWER_CONFIG, Model
from vlmrun.formats.instantiate import tokenizer
from vlmrun.model.pretrained import read_json

_USUAL = "vicuna_v1"


def template_for(usual: str | None, asked: str | None) -> tuple[Template, list[str]]:
    """The template that was asked for, or the usual one of the LLM's family and a note that it was assumed."""
    if asked is not None:
        return templates.get(asked), []
    name = usual or _USUAL
    return templates.get(name), [f"the folder names no template: {name} is assumed (--template NAME)"]


def name_padding(model: Model) -> None:
    """Lets the unknown token pad, or else the end, as upstream does, where a foreign tokenizer names none."""
    told: dict[str, Any] = {}
    for name in ("llm/special_tokens_map.json", "llm/tokenizer_config.json"):
        path = model.files.get(name)
        told |= {} if path is None else {k: v for k, v in json.loads(path.read_text("utf-8")).items() if v}
    pad = told.get("unk_token") or told.get("eos_token")
    if not told or "pad_token" in told or pad is None:
        return
    text = pad["content"] if isinstance(pad, dict) else pad
    model.description["model"]["llm"]["tokens"] = {"pad": text}


def chat_template(template: Template, behind: str = "") -> str:
    """The same text as `Template.prompt`, in Jinja; images of a message come before its text.

    Args:
        behind: what stands behind an image besides (`space_behind`).
    """
    strings = _strings(template)
    behind = behind if template.keep_question else ""  # else nothing stands behind it but the answer
    strings["image"] = template.image_start + IMAGE_TAG + behind + template.image_end
    text = {key: json.dumps(value, ensure_ascii=False) for key, value in strings.items()}
    answer_end = text["answer_end"]
    if template.by_turn:  # only the last answer has an end of its own
        answer_end = f"({answer_end} if loop.last else '')"
    trim = " | trim" if template.trims else ""
    if template.keep_question:
        pictured = f"((({text['image']} ~ '\\n') * said.images ~ said.text | trim) | trim)"
        shown = f"{pictured} if said.images else (said.text{trim})"
    else:
        shown = f"{text['image']} * said.images"
    return (
        f"{{%- set start = namespace(of={text['first']}) -%}}{{{{- {text['system']} }}}}"
        "{%- for message in messages -%}"
        "{%- set said = namespace(text='', images=0) -%}"
        "{%- if message.content is string -%}{%- set said.text = message.content -%}{%- else -%}"
        "{%- for item in message.content -%}"
        "{%- if item.type == 'image' -%}{%- set said.images = said.images + 1 -%}"
        "{%- else -%}{%- set said.text = said.text ~ item.text -%}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
        "{%- if message.role == 'user' -%}"
        f"{{{{- start.of ~ ({shown}) ~ {text['user_end']} }}}}"
        "{%- elif message.role == 'assistant' -%}"
        f"{{{{- {text['answer']} ~ (said.text{trim}) ~ {answer_end} }}}}"
        "{%- else -%}{{- raise_exception('this model has one system text, its own') }}{%- endif -%}"
        f"{{%- set start.of = {text['user']} -%}}"
        "{%- endfor -%}"
        f"{{{{- {text['ask']} if add_generation_prompt else {text['end']} }}}}"
    )


def _strings(template: Template) -> dict[str, str]:
    first = template.first_user_start
    return {
        "system": template.system,
        "first": template.user_start if first is None else first,
        "user": template.user_start,
        "user_end": template.user_end,
        "answer": template.assistant_start + template.answer_start,
        "answer_end": template.answer_end,
        "ask": template.assistant_start,
        "end": template.end,
    }


def saved_template(model: Model) -> Template:
    """The template the model was saved with."""
    config, saved = model.config, model.description.get("template")
    assert config is not None
    return Template.from_dict(saved) if saved else templates.marked(config.template, config.image_markers)


def generation(model: Model) -> dict[str, Any]:
    """The LLM's generation config, which ends where the template says an answer ends."""
    found = tokenizer(model)
    stops = stop_ids(saved_template(model), found)
    pad = found.pad_token_id
    kept = model.json.get(GENERATION, {})
    return {**kept, "eos_token_id": stops, "pad_token_id": stops[0] if pad is None else pad}


def write_processor(model: Model, folder: Path) -> None:
    """Processor, image processor and chat template."""
    vision = model.json[TOWER_CONFIG]
    n_class = int(vision["model_type"] == "clip_vision_model")
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TAG,
        "patch_size": vision["patch_size"],
        "vision_feature_select_strategy": strategy(model),
        "num_additional_image_tokens": n_class,
    }
    artifact.write_json(folder / "processor_config.json", processor)
    artifact.write_json(folder / "preprocessor_config.json", _image_processor(model))
    behind = space_behind(folder / "tokenizer.json")
    artifact.write_text(folder / "chat_template.jinja", chat_template(saved_template(model), behind))


def space_behind(path: Path) -> str:
    """A space, for a tokenizer that puts one before a text but not before what follows a special token.

    We, as upstream, give it every stretch of text between images on its own; a processor gives it the whole.
    """
    from tokenizers import Tokenizer

    found, text = Tokenizer.from_file(str(path)), "\nx"
    alone = found.encode(text, add_special_tokens=False).ids
    behind = found.encode(f"{IMAGE_TAG}{text}", add_special_tokens=False).ids[1:]
    return " " if behind != alone else ""


def _image_processor(model: Model) -> dict[str, Any]:
    values = dict(model.json[PREPROCESSOR]) | {"processor_class": "LlavaProcessor"}
    if model.description.get("image_aspect") != "pad":
        return values
    # Of transformers' image processors only Llava's own pads to a square first.
    return {"do_center_crop": False, **values, "image_processor_type": "LlavaImageProcessor", "do_pad": True}


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The image processor's values, from either of the two files that versions of transformers put them into."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return dict(read_json(folder / "processor_config.json", "fetch the model again")["image_processor"])
    return read_json(path, "fetch the model again")


def strategy(model: Model) -> str:
    """`default` leaves the first token of the tower out, `full` keeps all, of which SigLIP's are all patches."""
    config, vision = model.config, model.json[TOWER_CONFIG]
    assert config is not None
    patch = config.tower.arguments.get("feature", "patch") == "patch"
    return "default" if patch and vision["model_type"] == "clip_vision_model" else "full"


def n_image_tokens(model: Model) -> int:
    """Positions an image takes."""
    vision = model.json[TOWER_CONFIG]
    n_class = int(vision["model_type"] == "clip_vision_model")
    return n_patches(vision["image_size"], vision["patch_size"]) + n_class - (strategy(model) == "default")
