"""Other programs' launch scripts and argument files become recipes; nothing of them is ever run."""
