"""Copies: lifecycle, hold queue, router, fleet and scaling policy.

``lifecycle``, ``policy`` and what else only decides are pure; ``fleet`` is the one writer of copies, with ``bring_up``
(starts), ``health`` and ``lending`` (slots) at its side; ``hold`` is the queue; ``router`` chooses.
"""
