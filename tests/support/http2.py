"""An HTTP/2 connection by prior knowledge, as low as the protocol allows, on h2."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False


class Http2:
    """One connection; close it. *sock* may already speak TLS."""

    def __init__(self, sock: socket.socket, authority: str, *, scheme: str = "http") -> None:
        self.sock = sock
        self._authority, self._scheme = authority, scheme
        # What is sent may break the rules on purpose.
        config = h2.config.H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="latin-1"
        )
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.connection.data_to_send())

    def send(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes = b"") -> int:
        """Send a request; its stream's id. A body over the window (64 kB) is cut off."""
        stream = self.connection.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", self._scheme), (":authority", self._authority), (":path", path)]
        self.connection.send_headers(stream, [*pseudo, *headers], end_stream=not body)
        if body:
            most = self.connection.max_outbound_frame_size
            for start in range(0, len(body), most):
                part = body[start : start + most]
                self.connection.send_data(stream, part, end_stream=start + most >= len(body))
        self.flush()
        return stream

    def read(self, streams: list[int]) -> dict[int, Answer]:
        """The answers of *streams*; those that the server cut off are not whole."""
        answers = {stream: Answer() for stream in streams}
        open_streams = set(streams)
        while open_streams:
            try:
                self.flush()
                data = self.sock.recv(65536)
            except ConnectionError:
                break
            if not data:
                break
            for event in self.connection.receive_data(data):
                answer = answers.get(getattr(event, "stream_id", 0) or 0)
                if isinstance(event, h2.events.ConnectionTerminated):
                    return answers
                if answer is None:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    pairs = [(str(name), str(value)) for name, value in event.headers]
                    answer.status, answer.headers = int(dict(pairs)[":status"]), dict(pairs)
                elif isinstance(event, h2.events.DataReceived):
                    answer.body += event.data
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    answer.is_whole = True
                    open_streams.discard(event.stream_id)
                elif isinstance(event, h2.events.StreamReset):
                    open_streams.discard(event.stream_id)
        return answers

    def close(self) -> None:
        self.sock.close()
