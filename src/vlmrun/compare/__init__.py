"""Two runs, stages or artifacts side by side: what was asked for, what it read, what came out."""
