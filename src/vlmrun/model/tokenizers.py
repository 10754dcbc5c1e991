"""Fast tokenizers with the ids of the original training codes.

A folder of tokenizer.json is read as it is. A folder of tokenizer.model alone (SentencePiece, as Vicuna and
Llama come) is converted here: transformers 5 ranks the merges of such a file otherwise than transformers 4 did, drops
the leading space of a text that starts with one, and does not know the model's own user-defined pieces.

SentencePiece merges the pair whose result has the best score. A `tokenizers` BPE merges the pair of the lowest rank,
so pairs are ranked by the score of what they make; among equals, the order of the vocabulary decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmrun import regular
from vlmrun.errors import CheckpointError
from vlmrun.model import pretrained

MARK = "▁"  # what SentencePiece writes for a space
ROLES = ("pad", "eos", "unk", "bos")
_MODEL, _FAST, _CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
_BPE = 2  # trainer_spec.model_type
_USER_DEFINED = 4  # piece.type
_NEEDS = "the folder needs tokenizer.json and its config, undamaged: fetch the tokenizer again"
# Of tokenizer_config.json: the rest describes how transformers would convert the file.
_KEPT = ("model_max_length", "clean_up_tokenization_spaces", "chat_template", "additional_special_tokens")


def load_tokenizer(folder: Path, *, legacy: bool | None = None, tokens: Mapping[str, str | None] | None = None) -> Any:
    """A fast tokenizer whose tokens play the roles that `tokens` gives them.

    Args:
        legacy: of a SentencePiece tokenizer: whether a space is put in front of every stretch of text between special
            tokens (true), or in front of the whole text only (false). Null: what tokenizer_config.json says, where
            transformers' default is true; a tokenizer.json in the folder has it built in.
        tokens: tokens of the vocabulary for any of the roles `pad`, `eos`, `unk`, `bos`; null: the tokenizer's own.

    Raises:
        CheckpointError: when there is none, it is not a fast one (labels need its character offsets), it has no
            padding token, or a token of `tokens` is not in its vocabulary.
    """
    regular.require_all(Path(folder))
    with pretrained.read_by_others(str(folder), "the tokenizer", _NEEDS):
        tokenizer = _read(Path(folder), legacy)
        if not tokenizer.get_vocab():
            raise CheckpointError("the tokenizer's vocabulary is empty", str(folder), _NEEDS)
        _assign(tokenizer, tokens or {}, folder)
        tokenizer("a", return_offsets_mapping=True)  # what is odd in a file may show only when it is used
    return tokenizer


def is_converted(folder: Path, legacy: bool | None) -> bool:
    """Whether the folder's tokenizer is made from its tokenizer.model, so that its files are not what is used."""
    if not (folder / _MODEL).is_file() or _config(folder).get("tokenizer_class") not in _LLAMA_CLASSES:
        return False
    return legacy is not None or not (folder / _FAST).is_file()


_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", None)


def _read(folder: Path, legacy: bool | None) -> Any:
    config = _config(folder)
    if is_converted(folder, legacy):
        wanted = config.get("legacy") if legacy is None else legacy
        # No word about it in the config means the old way, as transformers takes it.
        return _from_sentencepiece(folder, config, legacy=True if wanted is None else bool(wanted))
    if legacy is not None and config.get("legacy") != legacy:
        raise CheckpointError(
            f"legacy: {str(legacy).lower()} needs the SentencePiece file {_MODEL}, which is not there",
            str(folder),
            "leave legacy out to read tokenizer.json as it is",
        )
    return _from_files(folder, config)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    return pretrained.read_json(path, "fetch the tokenizer again") if path.is_file() else {}


def _from_files(folder: Path, config: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # For these classes transformers 5 would build another backend than the one in the file; one of a model's own code
    # (MiniCPM-V) adds attributes to it that nothing here reads.
    own_class = "AutoTokenizer" in (config.get("auto_map") or {})
    as_it_is = (folder / _FAST).is_file() and (own_class or config.get("tokenizer_class") in _LLAMA_CLASSES[:-1])
    loader: Any = PreTrainedTokenizerFast if as_it_is else AutoTokenizer
    with pretrained.quietly():
        tokenizer = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise CheckpointError(
            "the tokenizer is not a fast one", str(folder), "labels need character offsets: add tokenizer.json"
        )
    return tokenizer


def _assign(tokenizer: Any, tokens: Mapping[str, str | None], folder: Path) -> None:
    known = tokenizer.get_vocab()
    for role, text in tokens.items():
        if role not in ROLES:
            raise CheckpointError(f"no role {role!r}", "model.llm.tokens", f"the roles are {', '.join(ROLES)}")
        if text is None:
            continue
        if text not in known:
            raise CheckpointError(
                f"tokens.{role} is {text!r}, which the tokenizer does not have",
                str(folder),
                "name a token of its vocabulary in model.llm.tokens",
            )
        setattr(tokenizer, f"{role}_token", text)
    if tokenizer.pad_token is None:
        named = [text for text in (tokenizer.unk_token, tokenizer.eos_token) if text]
        raise CheckpointError(
            "the tokenizer has no padding token",
            str(folder),
            f"say which token pads, for instance \"model.llm.tokens.pad='{named[0] if named else '<unk>'}'\" "
            "(padding is masked by position: sharing a token with text does no harm)",
        )


def _from_sentencepiece(folder: Path, config: dict[str, Any], *, legacy: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    proto = _parse(folder / _MODEL)
    pieces = list(proto.pieces)
    vocabulary = {piece.piece: index for index, piece in enumerate(pieces)}
    defined = [piece.piece for piece in pieces if piece.type == _USER_DEFINED]
    unknown = pieces[proto.trainer_spec.unk_id].piece
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            list(_merges(pieces, vocabulary)),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
            # A user-defined piece stands alone (see `_pre_tokenizer`) and is taken whole: no merge makes it.
            ignore_merges=bool(defined),
        )
    )
    backend.normalizer = _normalizer(proto, legacy)
    pre_tokenizer = _pre_tokenizer(defined, legacy and proto.normalizer_spec.add_dummy_prefix, proto)
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = {f"{role}_token": text for role in ROLES if (text := _text(config.get(f"{role}_token")))}
    special.setdefault("unk_token", unknown)
    special.setdefault("bos_token", pieces[proto.trainer_spec.bos_id].piece)
    special.setdefault("eos_token", pieces[proto.trainer_spec.eos_id].piece)
    kept = {key: config[key] for key in _KEPT if config.get(key) is not None}
    with pretrained.quietly():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="right", **special, **kept)
    _add_declared(tokenizer, config)
    _set_ends(tokenizer, bos=config.get("add_bos_token", True), eos=config.get("add_eos_token", False))
    tokenizer.init_kwargs["legacy"] = legacy
    return tokenizer


def _parse(file: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise CheckpointError(
            f"{file.name} is not a SentencePiece model: {error}", str(file), "fetch the tokenizer again"
        ) from error
    if proto.trainer_spec.model_type != _BPE or proto.normalizer_spec.remove_extra_whitespaces:
        raise CheckpointError(
            "only SentencePiece models of kind BPE that keep all spaces can be converted",
            str(file),
            "put the tokenizer.json that belongs to this model beside it",
        )
    return proto


def _merges(pieces: list[Any], vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """All pairs of pieces that make a piece, best score first."""
    found: list[tuple[float, str, str]] = []
    for piece in pieces:
        text = piece.piece
        cuts = ((text[:at], text[at:]) for at in range(1, len(text)))
        pairs = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(piece.score, left, right) for left, right in pairs]
    found.sort(key=lambda entry: entry[0], reverse=True)
    return ((left, right) for _, left, right in found)


def _normalizer(proto: Any, legacy: bool) -> Any:
    from tokenizers import normalizers

    charsmap = proto.normalizer_spec.precompiled_charsmap
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if legacy and proto.normalizer_spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(MARK))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", MARK)])


def _pre_tokenizer(defined: list[str], prefixed: bool, proto: Any) -> Any:
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    if not prefixed and proto.normalizer_spec.add_dummy_prefix:
        # Metaspace puts nothing in front of what starts with its own sign. The normaliser has left no space in the
        # text, so with a space as the sign it always does, in front of the whole text only; the second makes it a mark.
        steps += [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="never", split=False),
        ]
    if defined:
        # Not as added tokens: text between those would get a space in front. The longest wins, as in SentencePiece.
        longest = sorted((text.replace(" ", MARK) for text in defined), key=len, reverse=True)
        steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, longest))), "isolated"))
    return pre_tokenizers.Sequence(steps) if steps else None


def _add_declared(tokenizer: Any, config: dict[str, Any]) -> None:
    """Tokens that tokenizer_config.json adds beyond the model's pieces, at the ids it gives them."""
    from tokenizers import AddedToken

    declared = config.get("added_tokens_decoder") or {}
    known = tokenizer.get_vocab()
    for index, entry in sorted(declared.items(), key=lambda item: int(item[0])):
        if entry["content"] in known:
            continue
        token = AddedToken(**{key: value for key, value in entry.items() if key != "__type"})
        tokenizer.add_tokens([token], special_tokens=bool(entry.get("special")))
        if tokenizer.convert_tokens_to_ids(entry["content"]) != int(index):
            raise CheckpointError(
                f"added token {entry['content']!r} cannot have id {index}: ids before it are not in use",
                _CONFIG,
                "fetch the tokenizer again",
            )


def _set_ends(tokenizer: Any, *, bos: bool, eos: bool) -> None:
    from tokenizers import processors

    start = [tokenizer.bos_token] if bos else []
    end = [tokenizer.eos_token] if eos else []
    if not start and not end:
        return
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*start, "$A", *end],
        pair=[*start, "$A", *end, *(f"{text}:1" for text in start), "$B:1", *(f"{text}:1" for text in end)],
        special_tokens=[(text, tokenizer.convert_tokens_to_ids(text)) for text in {*start, *end}],
    )


def _text(token: Any) -> str | None:
    """A special token of tokenizer_config.json, which may be an AddedToken written out."""
    return token.get("content") if isinstance(token, dict) else token
