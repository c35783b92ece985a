"""The port: sockets, TLS, HTTP/1.1 and HTTP/2 in the event loop's own thread, and what a client may cost.

``listening`` accepts and decides by the first bytes; ``http1`` and ``http2`` turn bytes into exchanges;
``exchange`` is what the application gets of either; ``door`` is what all connections share. It knows no route, no
dialect and no credential. Why there is no server process or thread in between: docs/decisions/0008.
"""
