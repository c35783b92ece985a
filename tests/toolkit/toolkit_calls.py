"""Calls of a script through the SageMaker inference toolkit itself, without its Java server.

``toolkit_calls.py MODEL_DIR`` reads a list of calls as JSON and prints what each was answered.
"""

import base64
import json
import sys

from sagemaker_inference.transformer import Transformer


class Context:
    """What Multi Model Server hands to the toolkit."""

    def __init__(self, model_dir, properties):
        self.system_properties = {"model_dir": model_dir}
        self.request_processor = [self]
        self.properties = properties
        self.status, self.content_type = 200, None

    def get_request_properties(self):
        return self.properties

    def set_response_status(self, code, phrase=None):
        self.status = code

    def set_response_content_type(self, _index, value):
        self.content_type = value


def main():
    model_dir = sys.argv[1]
    sys.path.insert(0, f"{model_dir}/code")
    transformer = Transformer()
    answers = []
    for call in json.load(sys.stdin):
        context = Context(model_dir, {"Content-Type": call["content_type"], "Accept": call["accept"]})
        body = transformer.transform([{"body": base64.b64decode(call["body"])}], context)[0]
        body = body if isinstance(body, bytes) else str(body).encode()
        answers.append(
            {
                "status": context.status,
                "content_type": context.content_type,
                "body": base64.b64encode(body).decode(),
            }
        )
    json.dump(answers, sys.stdout)


main()
