"""What operators look at: metrics, request records, traces, logs. Never prompts, completions or credentials."""
