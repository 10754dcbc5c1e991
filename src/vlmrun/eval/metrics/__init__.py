"""Metrics by name. Each family is a file of pure functions; parity with the original scripts is tested case by case."""

from __future__ import annotations

from vlmrun import build
from vlmrun.errors import ConfigError, suggest
from vlmrun.eval.metrics import cmmmu, documents, gqa, mme, mmmu, options, scienceqa, simple, vqa, yes_no
from vlmrun.eval.metrics.base import Metric, accuracy

METRICS: dict[str, Metric] = {
    "exact": Metric(simple.exact, accuracy, reads="equal but for case and space around"),
    "vqa": Metric(vqa.soft, accuracy, needs=("answers",), reads="agreement with ten people, after the VQA clean-up"),
    "gqa": Metric(gqa.mark, gqa.summary, wrong=gqa.wrong, reads="equal, lower case, no full stop at the end"),
    "scienceqa": Metric(
        scienceqa.mark,
        scienceqa.summary,
        needs=("answer", "choices"),
        wrong=scienceqa.wrong,
        reads="letter of an option",
    ),
    "pope": Metric(yes_no.pope, yes_no.pope_summary, reads="yes or no"),
    "mme": Metric(mme.mme, mme.mme_summary, scale=2800.0, reads="yes or no, two questions an image"),
    "letter": Metric(options.letter, options.by_type, reads="letter of an option"),
    "mmbench": Metric(options.kit, options.round_trip, reads="letter or text of an option"),
    "mmmu": Metric(mmmu.mark, mmmu.summary, reads="letter, or phrase and numbers"),
    "cmmmu": Metric(cmmmu.mark, cmmmu.summary, needs=("answer", "type"), reads="letters, 对 or 错, or a blank"),
    "anls": Metric(documents.anls, accuracy, reads="edit distance to the nearest answer"),
    "relaxed": Metric(documents.relaxed, accuracy, reads="numbers within 5 %, other text equal"),
    "contains": Metric(documents.contains_word, accuracy, reads="the expected word occurs"),
}


def of(name: str) -> Metric:
    """A metric by its name, or `METRIC` of the module that a dotted path names.

    Raises:
        ConfigError: for an unknown name, and for a module that is not allowed, not there, or has no metric.
    """
    if "." not in name:
        if name not in METRICS:
            raise ConfigError(f"no metric {name!r}", "metric", suggest(name, METRICS, noun="metrics"))
        return METRICS[name]
    found = getattr(build.module(name, "metric"), "METRIC", None)
    if not isinstance(found, Metric):
        raise ConfigError(f"{name} has no METRIC", "metric", "define METRIC = Metric(mark, accuracy) there")
    return found
