"""One static site for everything below an output root: lists, runs, stages, sweeps, comparisons."""
