"""AWS protocols as bytes <-> values, driven by botocore's own service models. Pure: no sockets, no clock.

``service`` reads the models and routes on the raw path, ``parse`` and ``validate`` turn a request into checked
parameters, ``serialize`` does the way back, ``eventstream`` frames streams, ``sigv4`` is the signature arithmetic.
"""
