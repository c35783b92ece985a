"""What is done to a model in service from outside: deploy it as the one step of a pipeline, keep it warm by calls.

It speaks AWS's APIs through boto3 and, for aliases, which AWS has not, this project's own.
"""
