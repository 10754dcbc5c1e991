"""What is known of the Hugging Face hub without asking it: ids, addresses, and models that want a login."""

from __future__ import annotations

_DATASETS = "https://huggingface.co/datasets/"
# Owners whose models are given only to users who have accepted a license on the model's page.
_GATED = ("meta-llama/", "google/gemma", "mistralai/")


def dataset_id(url: str) -> str | None:
    """The id of a data set of the hub by its address; None: the address leads elsewhere."""
    found = url.removeprefix(_DATASETS).strip("/")
    return found if url.startswith(_DATASETS) and found.count("/") == 1 else None


def is_model_id(path: str) -> bool:
    """Whether a part's `path` is OWNER/NAME, as models of the hub are called."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith("/")


def login(model: str) -> str:
    """What to do first for a model that is known to be gated; else empty."""
    if not model.startswith(_GATED):
        return ""
    return f"accept its license on https://huggingface.co/{model} and run `hf auth login`, then "
