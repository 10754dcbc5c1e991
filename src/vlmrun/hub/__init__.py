"""Weights and data of recipes, fetched from the Hugging Face hub when a user asks for it; nothing else downloads."""
