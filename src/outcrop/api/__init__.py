"""Front doors, one file per service: bytes in, an authenticated call on the rooms below, bytes out.

``http`` is the ASGI edge, ``wire_errors`` the tables from facts to status codes, ``generation`` what every
inference route shares. Nothing here decides about copies, jobs or credentials.
"""
