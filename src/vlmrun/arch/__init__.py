"""What is known of LLMs, towers and connectors without torch."""
