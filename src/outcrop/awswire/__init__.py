"""AWS protocols as bytes <-> values, driven by botocore's own service models. Pure: no sockets, no clock.

``service`` reads the models and routes on the raw path; ``shapes`` compiles them to readers, which note what breaks
their ``constraints``, and writers; ``parse`` turns a request into checked parameters with those, ``serialize`` does the
way back; ``documents`` makes JSON from outside safe, ``eventstream`` frames streams, ``sigv4`` is the signature
arithmetic.
"""
