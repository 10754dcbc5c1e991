"""What a training command means: its family, and a recipe's value for every flag."""
