"""The clean-up of short answers that VQA-style metrics compare: punctuation, articles, number words, contractions.

Source: specification eval-and-serve 2.1, the m4c evaluator of LLaVA and Bunny and MiniCPM's vqaeval.
"""

from __future__ import annotations

import re
from functools import lru_cache

_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(value) for value, word in enumerate(_DIGITS.split())} | {"none": "0"}
_SIGNS = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
_PERIOD = re.compile(r"\.(?!\d)")
_DIGIT_COMMA = re.compile(r"(?<=\d),+(?=\d)")
_MOST_PERIODS = 32  # a flag of re.sub that upstream passes as the count

# Written with the apostrophe in its place; the keys leave out one or more of them.
_PLAIN = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
that's there'd there're there's they'd
they'll they're they've wasn't we've weren't what'll what're what's what've when's where'd where's where've
who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
_SOME = ("body'll", "body's", "one'd", "one'll", "one's", "thing'd", "thing'll")
_SOME_DOUBLE = ("body'd've", "one'd've", "thing'd've")
_CAPITALS = {"Id've": "I'd've", "I'dve": "I'd've", "Im": "I'm", "Ive": "I've"}
_ODD = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "some" + "body'd": "somebodyd",  # upstream takes the apostrophe out
    "twas": "'twas",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _contractions() -> dict[str, str]:
    found = {word.replace("'", ""): word for word in [*_PLAIN.split(), *(f"some{end}" for end in _SOME)]}
    for word in [*_DOUBLE.split(), *(f"some{end}" for end in _SOME_DOUBLE)]:
        first, second, third = word.split("'")
        found[f"{first}{second}'{third}"] = word
        found[f"{first}'{second}{third}"] = word
    return found | _ODD


_REPAIRS = _contractions()


@lru_cache(maxsize=65536)
def clean(text: str, *, whole: bool = True, exact: bool = False) -> str:
    """A short answer as the VQA metrics compare it.

    Args:
        whole: begin with lower case, without commas, question marks and the genitive's own word, as the m4c evaluator
            does and MiniCPM's vqaeval does not.
        exact: delete every full stop and repair I'm and I've too; upstream stops at 32 and never meets a capital.
    """
    if whole:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = punctuation(text, most_periods=0 if exact else _MOST_PERIODS)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_repair(word, exact) for word in words if word not in _ARTICLES)


def punctuation(text: str, most_periods: int = _MOST_PERIODS) -> str:
    """Signs deleted where one of them stands beside a space anywhere, else replaced by a space; then full stops."""
    digits = _DIGIT_COMMA.search(text) is not None
    cleaned = text
    for sign in _SIGNS:
        beside_space = f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if beside_space or digits else " ")
    return _PERIOD.sub("", cleaned, count=most_periods)


def _repair(word: str, exact: bool) -> str:
    if exact and word in _LOWERED:
        return _LOWERED[word]
    return _REPAIRS.get(word, word)


_LOWERED = {key.lower(): value.lower() for key, value in _CAPITALS.items()}
