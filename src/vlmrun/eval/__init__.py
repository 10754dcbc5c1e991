"""Answers and scores."""
