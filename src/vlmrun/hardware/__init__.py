"""What machines can do, and what DeepSpeed is given of them. Pure functions; never loads torch."""
