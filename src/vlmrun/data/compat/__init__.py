"""What upstream's data code does differently, by name."""
