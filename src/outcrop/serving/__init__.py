"""Copies: lifecycle, hold queue, router, fleet and scaling policy.

``lifecycle`` and ``policy`` are pure; ``fleet`` is the one writer of copies; ``hold`` is the queue; ``router`` chooses.
"""
