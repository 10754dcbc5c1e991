"""What a score depends on besides the model: two scores can be compared only when it is the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from vlmrun.config.schema import BenchmarkConfig
from vlmrun.eval import metrics

UNKNOWN = "unknown"  # of answers that another program made


def describe(config: BenchmarkConfig, *, template: str = UNKNOWN, image_aspect: str = UNKNOWN) -> dict[str, Any]:
    """Prompt, template, image mode, generation and metric of a score, with an id of them all.

    Args:
        template: the model's, by name.
        image_aspect: how images were fitted.
    """
    generation = config.generation.model_dump() if template != UNKNOWN else UNKNOWN
    parts: dict[str, Any] = {
        "prompt": config.prompt,
        "tail": config.tail,
        "template": template,
        "image_aspect": image_aspect,
        "generation": generation,
        "metric": config.metric,
        "metric_version": metrics.of(config.metric).version if config.metric else None,
    }
    return _named(parts)


def of_questions(*, template: str, image_aspect: str, max_new_tokens: int) -> dict[str, Any]:
    """The protocol of plain questions (`format: vqa`): greedy answers, exact match."""
    return _named(
        {
            "prompt": "",
            "tail": "",
            "template": template,
            "image_aspect": image_aspect,
            "generation": {"max_new_tokens": max_new_tokens},
            "metric": "exact_match",
            "metric_version": 1,
        }
    )


def _named(parts: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(parts, sort_keys=True)
    return {"id": hashlib.sha256(text.encode()).hexdigest()[:12], **parts}


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What two protocols differ in, in words; empty for one and the same."""
    keys = [key for key in {**first, **second} if key != "id"]
    return [f"{key}: {first.get(key)!r} and {second.get(key)!r}" for key in keys if first.get(key) != second.get(key)]
