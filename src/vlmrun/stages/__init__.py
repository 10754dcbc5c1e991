"""What each kind of stage does: `execute(job)` in a module of its own, which `kinds/` names and `back` imports."""
