"""What learns: kind of stage, parts, adapters, rates of parts, and the data it learns from."""

from __future__ import annotations

from vlmrun.importers.meaning.draft import Draft

_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_bias")
_QUANT = ("bits", "double_quant", "quant_type")


def kind(draft: Draft) -> None:
    """pretrain, lora, qlora or instruct; other rules ask for it."""
    adapters = draft.boolean("lora_enable") or draft.boolean("use_lora")
    few_bits = draft.boolean("q_lora") or ("bits" in draft.given and (draft.number_of("bits", int) or 16) < 16)
    if draft.boolean("tune_mm_mlp_adapter") or _named_parts(draft) == {"connector"}:
        draft.kind = "pretrain"
    elif adapters:
        draft.kind = "qlora" if few_bits else "lora"
    else:
        draft.kind = "instruct"


def _named_parts(draft: Draft) -> set[str]:
    """LLaVA-NeXT's --mm_tunable_parts, in our names."""
    if "mm_tunable_parts" not in draft.given:
        return set()
    names = {"mm_mlp_adapter": "connector", "mm_language_model": "llm", "mm_vision_tower": "tower"}
    return {names.get(word.strip(), word) for word in (draft.text("mm_tunable_parts") or "").split(",")}


def tuning(draft: Draft) -> None:
    """stage.tune, lora and quant."""
    if draft.family == "minicpm":
        _minicpm(draft)
    elif draft.family != "hf":
        _parts(draft)
    _adapters(draft)
    draft.settle("tune_mm_mlp_adapter", "taken", f"stage kind {draft.kind}")
    for name in ("lora_enable", "use_lora", "q_lora"):
        draft.settle(
            name, "taken", f"stage.tune.llm: {draft.settings['stage.tune.llm'].value}" if draft.family != "hf" else ""
        )


def _minicpm(draft: Draft) -> None:
    tower = "full" if draft.boolean("tune_vision") else "freeze"
    llm = draft.kind if draft.kind in ("lora", "qlora") else "full" if draft.boolean("tune_llm") else "freeze"
    draft.set("stage.tune.llm", llm, "tune_llm")
    if draft.kind == "qlora" and tower == "full":
        draft.differ("tune_vision", "stage.tune.tower", "full", "the tower stays unpacked here")
    draft.set("stage.tune.tower", tower, "tune_vision")
    draft.set("stage.tune.connector", "full", note="MiniCPM-V always trains its resampler")


def _parts(draft: Draft) -> None:
    named = _named_parts(draft)
    if draft.kind == "pretrain":
        rows = draft.boolean("mm_use_im_start_end") and "mpt" not in (draft.text("model_name_or_path") or "").lower()
        draft.set("stage.tune.llm", "new_tokens" if rows else "freeze", "tune_mm_mlp_adapter", "mm_tunable_parts",
                  note="the rows of the start and end tokens" if rows else "")  # fmt: skip
    elif draft.kind in ("lora", "qlora"):
        draft.set("stage.tune.llm", draft.kind, "lora_enable")
    elif named or "tune_language_model" in draft.given:
        whole = "llm" in named or draft.boolean("tune_language_model")
        draft.set("stage.tune.llm", "full" if whole else "freeze", "mm_tunable_parts", "tune_language_model")
    elif draft.boolean("freeze_backbone"):
        draft.differ("freeze_backbone", "stage.tune.llm", "freeze", "upstream still trains the output head")
    else:
        draft.set("stage.tune.llm", "full", note="nothing freezes the LLM")
    draft.settle("freeze_backbone", "taken" if draft.kind == "pretrain" else "no effect", f"kind {draft.kind}")
    flags = [
        name
        for name in ("unfreeze_vision_tower", "unfreeze_mm_vision_tower", "tune_vision_tower")
        if name in draft.given
    ]
    learns = any(draft.boolean(name) for name in flags) or "tower" in named
    draft.set("stage.tune.tower", "full" if learns else "freeze", *flags, "mm_tunable_parts")
    frozen = draft.boolean("freeze_mm_mlp_adapter") or bool(named and "connector" not in named)
    draft.set("stage.tune.connector", "freeze" if frozen else "full", "freeze_mm_mlp_adapter", "tune_mm_projector")


def _adapters(draft: Draft) -> None:
    if draft.kind not in ("lora", "qlora"):
        for name in (*_LORA, *_QUANT, "lora_target_modules", "lora_modules_to_save"):
            draft.settle(name, "no effect", "no adapters are trained")
        return
    draft.set("stage.lora.r", draft.number_of("lora_r", int), "lora_r")
    draft.set("stage.lora.alpha", draft.number_of("lora_alpha"), "lora_alpha")
    draft.set("stage.lora.dropout", draft.number_of("lora_dropout"), "lora_dropout")
    draft.set("stage.lora.bias", draft.text("lora_bias"), "lora_bias")
    if draft.family == "minicpm":
        targets = draft.text("lora_target_modules") or r"llm\..*layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj)"
        draft.set("stage.lora.targets", targets, "lora_target_modules")
        # Upstream trains the embedding whole wherever the LLM is not trained; the resampler is tune.connector.
        draft.set(
            "stage.lora.modules_to_save", ["embed_tokens"], "lora_modules_to_save", note="whole, as upstream does"
        )
    else:
        draft.set("stage.lora.targets", "all-linear", note="upstream finds all linear layers of the LLM")
        draft.set("stage.lora.modules_to_save", [], note="none upstream")
    if draft.kind == "qlora":
        bits = 4 if draft.boolean("q_lora") else draft.number_of("bits", int)
        draft.set("stage.quant.bits", bits, "bits", "q_lora")
        draft.set("stage.quant.type", draft.text("quant_type") or "nf4", "quant_type")
        double = draft.boolean("double_quant") if "double_quant" in draft.table else True
        draft.set("stage.quant.double", double, "double_quant")
    for name in _QUANT:
        draft.settle(name, "no effect", "nothing is quantized")


def rates(draft: Draft) -> None:
    """Rates of connector and tower, where they have their own."""
    own = draft.number_of("mm_projector_lr") if "mm_projector_lr" in draft.given else None
    draft.set("stage.optim.connector_lr", own, "mm_projector_lr", note="" if own else "the one rate")
    tower = draft.number_of("mm_vision_tower_lr") if "mm_vision_tower_lr" in draft.given else None
    if tower is None and draft.family == "bunny" and draft.settings["stage.tune.tower"].value == "full":
        tower = own
        if own is not None:
            draft.set("stage.optim.tower_lr", own, note="Bunny's tower learns at the projector's rate")
    elif tower is not None:
        draft.set("stage.optim.tower_lr", tower, "mm_vision_tower_lr")


def data(draft: Draft) -> None:
    """The records and their images."""
    if "data_path" not in draft.table:
        return
    path, images = draft.text("data_path"), draft.text("image_folder")
    draft.data["train"] = {
        "annotations": path,
        "images": images,
        "source": draft.where("data_path"),
        "images_source": draft.where("image_folder"),
    }
    draft.settle("data_path", "taken", f"data.NAME.annotations: {path}")
    draft.settle("image_folder", "taken", f"data.NAME.images: {images}")


RULES = (tuning, rates, data)
