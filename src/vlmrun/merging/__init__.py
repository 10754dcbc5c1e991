"""One model of several: LoRA merges and averages."""
