"""What was used and what it would have cost: a ledger of integers, billed windows, a price book.

``meter`` counts while the server runs, ``registry.usage_records`` keeps one row per hour, model and principal,
``bill`` turns rows and prices into money. Nothing here asks a copy or a request to wait.
"""
