"""What a run will need, from formulas alone. Never loads torch, but for `meta.py`."""
