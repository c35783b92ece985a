"""Moving one name's traffic from one side to another, in steps that are watched and taken back by themselves.

``plan``, ``split``, ``observe``, ``guards``, ``machine`` and ``compare`` decide and are pure; ``runner`` is the one
owner of migrations: it keeps them durable and turns the clock. Who asks the sides is ``api.migration``. Database
migrations are something else: ``registry.migrations``.
"""
