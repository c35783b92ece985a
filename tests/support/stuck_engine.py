"""An engine that may stop getting on: health and metrics answer, requests hang while *stuck_file* exists."""

from __future__ import annotations

import http.server
import json
import sys
import time
from pathlib import Path

ANSWER = {
    "choices": [{"index": 0, "text": "done", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stuck_file: Path

    def do_GET(self) -> None:
        self._say(b"vllm:generation_tokens_total 7\n" if self.path == "/metrics" else b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        while self.stuck_file.exists():
            time.sleep(0.1)
        self._say(json.dumps(ANSWER).encode())

    def log_message(self, *_: object) -> None:
        pass

    def _say(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    Handler.stuck_file = Path(sys.argv[2])
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
