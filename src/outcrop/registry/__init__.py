"""Durable records: import jobs, imported models, and their migrations.

SQLite in WAL mode by default. Calls block for a disk write and are made from a thread (``asyncio.to_thread``);
nothing here knows HTTP, processes or files of weights.
"""
