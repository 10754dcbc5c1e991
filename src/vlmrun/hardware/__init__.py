"""What machines can do, and what DeepSpeed is told about them. Pure functions; never loads torch."""
