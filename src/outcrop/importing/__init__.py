"""Import jobs: from a prefix in a bucket to a registered model.

``states`` is the table of phases (pure), ``source`` reads the bucket, ``weights`` is the content-addressed store,
``jobs`` drives. Every step looks at what is already there and is safe to repeat, so a job whose server was killed at
any line is taken up by the next start; only the last rename and one transaction make a model visible.
"""
