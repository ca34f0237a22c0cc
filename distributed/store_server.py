"""Where ranks meet that no MPI has started: a process that gathers what they send.

Rank 0 starts it (``python store_server.py ADDRESS PORT PORTS TOKEN SIZE``) as a process of its own,
so that no rank's Python holds it up. It prints the port that it listens on. It imports nothing but
the standard library, and ends when its standard input is closed and the ranks have left.

A frame is two lengths, a JSON object and bytes. Requests, with ``rank`` in all of them::

    join    {token}                   answered when the token is the job's
    gather  {key, of} + bytes         answered to all ``of`` ranks, once each has sent its bytes
    post    {key} + bytes             a message; no answer
    take    {number, keys}            answered with the first message under one of the keys
    who     {number, key}             which ranks have sent to a gather that is not over

A rank whose connection ends is told to all others as ``gone``.
"""

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections import deque
from typing import Any

_HEAD = struct.Struct("<QQ")
_READ_BYTES = 1 << 20
_MOST_BYTES = 1 << 34  # of a frame: longer ones are no frames
_LINGER_S = 30.0  # after rank 0 has ended


def frame(message: dict[str, Any], payload: bytes = b"") -> bytes:
    """A message as it travels."""
    text = json.dumps(message).encode()
    return _HEAD.pack(len(text), len(payload)) + text + payload


def unframe(data: bytearray) -> tuple[dict[str, Any], bytes] | None:
    """Take the first whole frame off the data, if there is one.

    Raises:
        ValueError: this is no frame.

    >>> data = bytearray(frame({"do": "post"}, b"ab") + b"rest")
    >>> unframe(data), unframe(data), bytes(data)
    (({'do': 'post'}, b'ab'), None, b'rest')
    """
    if len(data) < _HEAD.size:
        return None
    text_bytes, payload_bytes = _HEAD.unpack_from(data)
    if text_bytes + payload_bytes > _MOST_BYTES:
        raise ValueError("no frame")
    end = _HEAD.size + text_bytes + payload_bytes
    if len(data) < end:
        return None
    message = json.loads(data[_HEAD.size : _HEAD.size + text_bytes])
    payload = bytes(data[_HEAD.size + text_bytes : end])
    del data[:end]
    return message, payload


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rank = -1
        self.read, self.unsent = bytearray(), bytearray()


class Server:
    """The ranks' meeting place.

    Args:
        listener: a listening socket.
        token: what a rank of this job knows.
        size: the number of ranks.
    """

    def __init__(self, listener: socket.socket, token: str, size: int) -> None:
        self._token, self._size = token, size
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._clients: dict[int, _Client] = {}
        self._gathers: dict[str, dict[int, bytes]] = {}
        self._messages: dict[str, deque[tuple[int, bytes]]] = {}
        self._takers: list[tuple[int, int, list[str]]] = []  # rank, number, keys

    def run(self, owner_fd: int) -> None:
        """Serve until the owner has closed its end and the ranks have left."""
        self._selector.register(owner_fd, selectors.EVENT_READ, owner_fd)
        end_s: float | None = None
        while end_s is None or (time.monotonic() < end_s and self._clients):
            for key, events in self._selector.select(1.0):
                if key.data is None:
                    self._accept()
                elif isinstance(key.data, int):
                    if not os.read(owner_fd, 1):
                        self._selector.unregister(owner_fd)
                        end_s = time.monotonic() + _LINGER_S
                else:
                    self._serve(key.data, events)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, _Client(connection))

    def _serve(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(client, b"")
            if events & selectors.EVENT_READ:
                data = client.connection.recv(_READ_BYTES)
                if not data:
                    raise OSError("closed")
                client.read += data
                while (found := unframe(client.read)) is not None:
                    self._do(client, *found)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError):
            self._drop(client)

    def _do(self, client: _Client, message: dict[str, Any], payload: bytes) -> None:
        do = message["do"]
        if do == "join":
            if message["token"] != self._token or not 0 <= message["rank"] < self._size:
                raise ValueError("another job's")
            client.rank = message["rank"]
            self._clients[client.rank] = client
            self._send(client, frame({"joined": client.rank}))
        elif client.rank < 0:
            raise ValueError("not joined")
        elif do == "gather":
            self._gather(client.rank, message["key"], message["of"], payload)
        elif do == "post":
            self._messages.setdefault(message["key"], deque()).append((client.rank, payload))
            self._match()
        elif do == "take":
            self._takers.append((client.rank, message["number"], message["keys"]))
            self._match()
        elif do == "who":
            who = sorted(self._gathers.get(message["key"], ()))
            self._send(client, frame({"number": message["number"], "who": who}))

    def _gather(self, rank: int, key: str, of: list[int], payload: bytes) -> None:
        found = self._gathers.setdefault(key, {})
        found[rank] = payload
        if all(one in found for one in of):
            del self._gathers[key]
            sizes = [len(found[one]) for one in of]
            answer = frame({"key": key, "sizes": sizes}, b"".join(found[one] for one in of))
            for one in of:
                if one in self._clients:
                    self._send(self._clients[one], answer)

    def _match(self) -> None:
        """Give messages to those who wait for them."""
        waiting: list[tuple[int, int, list[str]]] = []
        for rank, number, keys in self._takers:
            key = next((key for key in keys if self._messages.get(key)), None)
            if key is None or rank not in self._clients:
                waiting.append((rank, number, keys))
                continue
            _, payload = self._messages[key].popleft()
            if not self._messages[key]:
                del self._messages[key]
            self._send(self._clients[rank], frame({"number": number, "from": key}, payload))
        self._takers = waiting

    def _send(self, client: _Client, data: bytes) -> None:
        client.unsent += data
        with contextlib.suppress(BlockingIOError):
            while client.unsent:
                sent = client.connection.send(memoryview(client.unsent)[:_READ_BYTES].tobytes())
                del client.unsent[:sent]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        self._selector.modify(client.connection, wanted, client)

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.connection)
        client.connection.close()
        if self._clients.get(client.rank) is client:
            del self._clients[client.rank]
            for other in list(self._clients.values()):
                with contextlib.suppress(OSError):
                    self._send(other, frame({"gone": client.rank}))


def listen(address: str, port: int, ports: int) -> socket.socket:
    """A socket that listens on the first free one of some ports.

    Raises:
        OSError: none is free.
    """
    for number in range(port, port + ports):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, number))
        except OSError:
            listener.close()
            if number == port + ports - 1:
                raise
            continue
        listener.listen(1024)
        return listener
    raise OSError("no ports")


def main() -> None:
    """Serve as the command line says."""
    address, port, ports, token, size = sys.argv[1:]
    try:
        listener = listen(address, int(port), int(ports))
    except OSError as error:
        print(f"error {error}", flush=True)
        return
    print(f"port {listener.getsockname()[1]}", flush=True)
    Server(listener, token, int(size)).run(0)


if __name__ == "__main__":
    main()
