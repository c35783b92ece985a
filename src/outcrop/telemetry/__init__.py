"""Metrics and logs: what operators look at. Never prompts, completions or credentials."""
