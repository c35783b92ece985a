"""Outcrop: import fine-tuned open-weight models and serve them through the Bedrock, SageMaker and OpenAI APIs.

The rooms of the house, and which way imports may point between them, are in ``docs/design.md``.
"""

__version__ = "0.1.0"
