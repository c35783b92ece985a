"""One file per way in which people write inference code; each runs it and forwards where inference was."""
