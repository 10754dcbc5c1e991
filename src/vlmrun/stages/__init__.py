"""What each kind of stage does: `execute(job)` in the module called as the kind is, which `back.py` imports."""
