"""The VLM and its three parts."""
