"""Inference engines behind one protocol: how a copy is started, asked and read."""
