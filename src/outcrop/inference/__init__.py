"""What a caller asked and what an engine answered: one canonical form, and the dialects that read and write it."""
