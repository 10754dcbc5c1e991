"""Marks of templates and tokenizers that must not stand in a record's text."""

from __future__ import annotations

from collections.abc import Iterable

from vlmrun.data.sample import IMAGE_TAG
from vlmrun.data.templates import Template

# Marks of the common templates: what a record must not contain when it is not known which template will be used.
_TOKENS = (
    "</s> <s> <unk> <pad> [PAD] ### [INST] [/INST] <<SYS>> <|im_start|> <|im_end|> <|endoftext|> <|end_of_text|> "
    "<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|> <im_start> <im_end> <im_patch> <Image> "
    "</Image>"
)
COMMON_MARKS = (*_TOKENS.split(), " ASSISTANT: ")


def marks_of(template: Template | None, special_tokens: Iterable[str] = ()) -> tuple[str, ...]:
    """What a text must not contain under a template and a tokenizer; the common marks when neither is known."""
    # A tag marks an image's place also where the tokenizer has a token of its name.
    tokens = [text for text in special_tokens if text.strip() and text != IMAGE_TAG]
    if template is None:
        return tuple(dict.fromkeys((*COMMON_MARKS, *tokens)))
    headers = [f" {start} " for text in (template.user_start, template.assistant_start) if (start := text.strip())]
    ends = [text for text in (*template.stop, template.answer_end) if text.strip()]
    return tuple(dict.fromkeys((*template.special_tokens, *ends, *headers, *tokens)))
