"""Requests whose name is being migrated: which side they are for, both sides asked, answers in the caller's dialect.

``calls``, ``reading`` and ``framing`` are pure; ``sides`` asks, ``splitter`` decides who gets which answer, ``shadows``
asks the other side afterwards, ``orders`` is the operator's part. What decides about steps is ``serving.migration``.
"""
