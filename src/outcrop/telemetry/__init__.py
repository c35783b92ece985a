"""What operators look at: metrics, request records, traces, logs. Prompts and completions only where
an account asks for its invocation log; never credentials."""
