"""Samples in tar shards: webdataset's layout and megatron-energon's metadata, read by offset, written whole."""
