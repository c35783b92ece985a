"""Clients that other people wrote, unmodified, against a real server with a real imported model."""
