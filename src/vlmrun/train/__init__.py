"""The training loop on DeepSpeed, and what watches over it."""
