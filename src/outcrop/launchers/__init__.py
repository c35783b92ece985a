"""Where copies run: the launcher starts a process and stops it, and knows nothing of models."""
