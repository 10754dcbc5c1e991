"""Several nodes: who leads, who follows, and how they talk."""
