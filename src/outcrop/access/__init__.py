"""Who is asking: identities, keys, signatures. What they may do comes here too as policies arrive."""
