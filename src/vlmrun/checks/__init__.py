"""Rules a run must keep: `table.py` says what a rule is, `rules.py` lists them all."""
