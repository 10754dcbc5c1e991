"""DeepSpeed's configuration, made from a stage and the hardware."""
