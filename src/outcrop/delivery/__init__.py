"""The one step that a pipeline adds: from a checkpoint to a served model, or back with the reason.

It speaks AWS's APIs through boto3 and, for aliases, which AWS has not, this project's own.
"""
