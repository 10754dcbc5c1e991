"""What every forked rank needs, imported once in the fork server. Imports only: no tensors, threads or groups."""

# ruff: noqa: F401  imported for the ranks that will be forked

import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import deepspeed
import deepspeed.runtime.zero.muon.original_muon
import peft
import transformers.models.clip.modeling_clip
import transformers.models.llama.modeling_llama

import vlmrun.stages.train

# DeepSpeed collects garbage many times while it starts; without this it would walk through all modules each time.
gc.freeze()
