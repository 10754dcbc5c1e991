"""What each kind of stage does: `execute(job)` in the module that its kind names, which `back.py` imports."""
