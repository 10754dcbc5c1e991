"""Order, reuse and launch stages. Never loads torch, never imports a stage: it spawns workers."""
