"""Ranks that MPI has not started: ``torchrun``'s variables, or ``init_method``.

    env://               RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, as torchrun sets them
    tcp://HOST:PORT      with rank and world_size
    file:///shared/path  with rank and world_size; a file that does not exist yet

Rank 0 starts a small server (``store_server``); all connect to it. Every collective on host arrays
is one gather through it and a line of NumPy: enough for headers, objects and NCCL's id, and slow
for large CPU tensors, which are MPI's affair.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tensorlib.distributed import store_server
from tensorlib.distributed.call import RECORD_BYTES, name_ranks
from tensorlib.distributed.communicator import Capabilities, Communicator, Requests
from tensorlib.distributed.lookout import Sighting
from tensorlib.distributed.reduction import UFUNCS, Array, ReduceOp, as_bytes, divide
from tensorlib.distributed.store_server import frame, unframe
from tensorlib.distributed.work import Steps, Work
from tensorlib.errors import (
    ArgumentError,
    BackendUnavailableError,
    CollectiveTimeoutError,
    DistributedError,
)

_PORTS = 8  # tried from MASTER_PORT on, where torchrun's own store may listen
_TRY_S = 2.0


@dataclass(frozen=True)
class Meeting:
    """Where the ranks meet, and who this one is.

    Attributes:
        rank: this process's.
        size: the number of ranks.
        address: rank 0's host; empty: the file says.
        port: the first of the ports that may be taken.
        path: the file that says where.
        token: what only ranks of this job send.
    """

    rank: int
    size: int
    address: str = ""
    port: int = 0
    path: str = ""
    token: str = ""


def meeting(
    init_method: str | None, rank: int, world_size: int, environ: Any = os.environ
) -> Meeting | None:
    """Where ``init_method`` or the environment say that ranks meet; None if neither does.

    Raises:
        ArgumentError: they say it incompletely.

    >>> meeting("tcp://10.0.0.1:2345", 1, 4, {})
    Meeting(rank=1, size=4, address='10.0.0.1', port=2345, path='', token='10.0.0.1:2345/4')
    """
    if init_method in (None, "env://"):
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environ]
        if missing and (init_method is None or missing == list(names)):
            return None  # plain python: a world of one
        if missing:
            raise ArgumentError(
                f'init_process_group: init_method="env://", but {", ".join(missing)} not set; '
                "start with torchrun, or with tlrun -n N script.py"
            )
        rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        address, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            port += 1  # torchrun's own store has the port itself
        attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "")
        run = environ.get("TORCHELASTIC_RUN_ID", "")
        token = f"{address}:{port}/{world_size}{run and f'/{run}'}{attempt and f'/{attempt}'}"
        return Meeting(rank, world_size, address, port, token=token)
    parts = urlsplit(init_method)
    if not 0 <= rank < world_size:
        raise ArgumentError(
            f"init_process_group: init_method={init_method!r} needs rank and world_size, got "
            f"rank={rank} and world_size={world_size}"
        )
    if parts.scheme == "tcp" and parts.hostname and parts.port:
        token = f"{parts.hostname}:{parts.port}/{world_size}"
        return Meeting(rank, world_size, parts.hostname, parts.port, token=token)
    if parts.scheme == "file" and parts.path:
        return Meeting(rank, world_size, path=parts.netloc + parts.path)
    raise ArgumentError(
        f"init_process_group: init_method={init_method!r} is unknown; pass env://, "
        "tcp://host:port or file:///path"
    )


class _Answer:
    """An answer of the server, as something to wait for."""

    def __init__(self, link: "Link", key: Any) -> None:
        self._link, self._key = link, key
        self.message: dict[str, Any] = {}
        self.payload = b""

    def Test(self) -> bool:
        """Whether it has come."""
        found = self._link.answer(self._key)
        if found is None:
            return False
        self.message, self.payload = found
        return True


class Link:
    """This rank's connection to the server.

    Args:
        connection: a socket that has joined.
        server: the server's process, on rank 0.
    """

    def __init__(self, connection: socket.socket, server: Any = None) -> None:
        self._connection, self._server = connection, server
        self._lock = threading.RLock()  # the watchdog of GPUs asks, too
        connection.setblocking(False)
        self._read, self._unsent = bytearray(), bytearray()
        self._answers: dict[Any, tuple[dict[str, Any], bytes]] = {}
        self._numbers = 0
        self.gone: set[int] = set()
        self.groups = 0  # made so far, on every rank alike

    def ask(self, message: dict[str, Any], payload: bytes = b"") -> _Answer:
        """Send a request; its answer comes."""
        with self._lock:
            key = message.get("key")
            if message["do"] in ("take", "who"):
                self._numbers += 1
                key = message["number"] = self._numbers
            self._unsent += frame(message, payload)
            self._pump()
        return _Answer(self, key)

    def answer(self, key: Any) -> tuple[dict[str, Any], bytes] | None:
        """An answer that has come, once."""
        with self._lock:
            self._pump()
            return self._answers.pop(key, None)

    def idle(self) -> bool:
        """Whether everything has been sent."""
        with self._lock:
            self._pump()
            return not self._unsent

    def _pump(self) -> None:
        try:
            while self._unsent:
                sent = self._connection.send(self._unsent[: 1 << 20])
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost() from error
        try:
            while data := self._connection.recv(1 << 20):
                self._read += data
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost() from error
        else:
            self._take()
            if not self._answers:
                raise self._lost()
        self._take()

    def _take(self) -> None:
        while (found := unframe(self._read)) is not None:
            message, payload = found
            if "gone" in message:
                self.gone.add(message["gone"])
            else:
                self._answers[message.get("key", message.get("number"))] = message, payload

    def _lost(self) -> DistributedError:
        return DistributedError(
            "process group: rank 0's store has ended, and with it the job; see rank 0's output"
        )

    def close(self) -> None:
        """Leave; the server ends when all have."""
        end = time.monotonic() + _TRY_S
        with contextlib.suppress(DistributedError):
            while not self.idle() and time.monotonic() < end:
                time.sleep(1e-3)
        self._connection.close()
        if self._server is not None:
            self._server.stdin.close()


def connect(where: Meeting, timeout_s: float) -> "StoreCommunicator":
    """Join the others.

    Raises:
        CollectiveTimeoutError: rank 0 could not be reached in time, or others did not come.
        BackendUnavailableError: rank 0 cannot listen.
    """
    end = time.monotonic() + timeout_s
    server = None
    if where.rank == 0:
        server, where = _serve(where)
    connection = _join(where, end)
    group = StoreCommunicator(Link(connection, server), range(where.size), where.rank, timeout_s)
    group.barrier("init_process_group").wait()
    return group


def _serve(where: Meeting) -> tuple[Any, Meeting]:
    """Start the server; where it listens."""
    if where.path:
        try:
            address = socket.gethostbyname(socket.gethostname())
        except OSError:
            address = "127.0.0.1"
        port, ports, token = 0, 1, secrets.token_hex(16)
    else:
        address, port, ports, token = where.address, where.port, _PORTS, where.token
    path = Path(store_server.__file__)
    arguments = [address, str(port), str(ports), token, str(where.size)]
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # an interrupt of the terminal is the ranks' affair
    )
    server.returncode = 0  # it outlives this process by a moment, and nobody waits for it
    assert server.stdout is not None
    with server.stdout as stdout:
        said = stdout.readline().decode()
    kind, _, text = said.strip().partition(" ")
    if kind != "port":
        raise BackendUnavailableError(
            f"init_process_group: rank 0 cannot listen on {address}:{port}: {text or 'no answer'}; "
            "set MASTER_ADDR to an address of rank 0's host and MASTER_PORT to a free port"
        )
    found = Meeting(where.rank, where.size, address, int(text), where.path, token)
    if where.path:
        place, temporary = Path(where.path), Path(f"{where.path}.{os.getpid()}")
        temporary.write_text(
            json.dumps({"address": address, "port": found.port, "token": token}), encoding="utf-8"
        )
        temporary.chmod(0o600)  # the token lets a process in
        temporary.replace(place)
    return server, found


def _join(where: Meeting, end_s: float) -> socket.socket:
    """A connection on which the server has let this rank in."""
    while time.monotonic() < end_s:
        found = where
        if where.path and where.rank:
            try:
                said = json.loads(Path(where.path).read_text(encoding="utf-8"))
                found = Meeting(
                    where.rank, where.size, said["address"], said["port"], token=said["token"]
                )
            except (OSError, ValueError, KeyError):
                time.sleep(0.02)
                continue
        first = where.rank == 0 or bool(where.path)
        for port in range(found.port, found.port + (1 if first else _PORTS)):
            connection = _knock(found, port)
            if connection is not None:
                return connection
        time.sleep(0.05)
    place = where.path or f"{where.address}:{where.port}"
    raise CollectiveTimeoutError(
        f"init_process_group: rank {where.rank} did not find rank 0 at {place} in time; start all "
        f"{where.size} ranks, and give all the same address"
    )


def _knock(where: Meeting, port: int) -> socket.socket | None:
    """A connection to a port if the job's server is there."""
    try:
        connection = socket.create_connection((where.address, port), _TRY_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(frame({"do": "join", "token": where.token, "rank": where.rank}))
        data = bytearray()
        expected = len(frame({"joined": where.rank}))
        while len(data) < expected:
            more = connection.recv(expected - len(data))
            if not more:
                raise OSError("refused")
            data += more
        answer = unframe(data)
    except (OSError, ValueError):
        return None
    return connection if answer is not None and "joined" in answer[0] else None


class StoreCommunicator(Communicator):
    """A group of ranks that meet in a store.

    Args:
        link: this rank's connection.
        ranks: the world rank of each member.
        rank: this process's rank in the group.
        timeout_s: how long a wait may take, in seconds.
        name: tells the groups apart; the same on every member.
    """

    capabilities = Capabilities(devices=("cpu",))

    def __init__(
        self, link: Link, ranks: Sequence[int], rank: int, timeout_s: float, name: str = "0"
    ) -> None:
        super().__init__(rank, ranks, timeout_s)
        self._link, self._name = link, name
        self._headers = self._transfers = self._splits = 0
        self._unanswered: list[str] = []  # headers that have not come from all ranks

    def split(self, color: int | None, key: int = 0) -> "StoreCommunicator | None":
        """A group of the ranks with the same color, ordered by key."""
        chosen = np.array([color is not None, color or 0, key], np.int64)
        everyones = np.empty((self.size, 3), np.int64)
        self.all_gather(everyones, chosen, "split").wait()
        self._splits += 1
        if color is None:
            return None
        places = [(int(row[2]), r) for r, row in enumerate(everyones) if row[0] and row[1] == color]
        members = [r for _, r in sorted(places)]
        name = f"{self._name}.{self._splits}:{color}"
        ranks = [self.ranks[r] for r in members]
        rank = members.index(self.rank)
        return StoreCommunicator(self._link, ranks, rank, self.timeout_s, name)

    def close(self) -> None:
        """The group of all ranks leaves the store."""
        if self._name == "0":
            self._link.close()

    # Everything is a gather.

    def _exchange(self, record: bytes, records: bytearray, shown: Array | None) -> Requests:
        self._headers += 1
        number = f"h{self._headers}"
        self._unanswered.append(number)
        answer = self._ask(number, record)
        yield answer
        self._unanswered.remove(number)
        records[:] = answer.payload

    def _everyones(self, payload: bytes) -> Any:
        """The bytes of all ranks, in rank order."""
        self._transfers += 1
        answer = self._ask(f"t{self._transfers}", payload)
        yield answer
        found, start = [], 0
        for size in answer.message["sizes"]:
            found.append(answer.payload[start : start + size])
            start += size
        return found

    def _ask(self, number: str, payload: bytes) -> _Answer:
        key = f"{self._name}/{number}"
        return self._link.ask({"do": "gather", "key": key, "of": list(self.ranks)}, payload)

    def _reduced(self, array: Array, op: ReduceOp, divisor: int) -> Any:
        everyones = yield from self._everyones(array.tobytes())
        rows = [np.frombuffer(one, array.dtype).reshape(array.shape) for one in everyones]
        with np.errstate(all="ignore"):
            result = np.asarray(reduce(UFUNCS[op], rows)).copy()
            divide(result, divisor)
        return result

    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        buffer[...] = yield from self._reduced(buffer, op, divisor)

    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        result = yield from self._reduced(buffer, op, divisor)
        if self.rank == root:
            buffer[...] = result

    def _reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        result = yield from self._reduced(packed, op, divisor)
        out[...] = result[self.rank]

    def _all_gather(self, packed: Array, array: Array) -> Requests:
        everyones = yield from self._everyones(array.tobytes())
        as_bytes(packed)[...] = np.frombuffer(b"".join(everyones), np.uint8)

    def _gather(self, packed: Array | None, array: Array, root: int) -> Requests:
        everyones = yield from self._everyones(array.tobytes())
        if packed is not None:
            as_bytes(packed)[...] = np.frombuffer(b"".join(everyones), np.uint8)

    def _scatter(self, out: Array, packed: Array | None, root: int) -> Requests:
        everyones = yield from self._everyones(b"" if packed is None else packed.tobytes())
        mine = everyones[root][self.rank * out.nbytes : (self.rank + 1) * out.nbytes]
        as_bytes(out)[...] = np.frombuffer(mine, np.uint8)

    def _broadcast(self, buffer: Array, root: int) -> Requests:
        everyones = yield from self._everyones(buffer.tobytes() if self.rank == root else b"")
        as_bytes(buffer)[...] = np.frombuffer(everyones[root], np.uint8)

    def _all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests:
        row_bytes = array.itemsize * int(np.prod(array.shape[1:]))
        counts = np.array(rows, np.int64).tobytes()
        everyones = yield from self._everyones(counts + array.tobytes())
        parts = []
        for one in everyones:
            sizes = np.frombuffer(one[: len(counts)], np.int64) * row_bytes
            start = len(counts) + int(sizes[: self.rank].sum())
            parts.append(one[start : start + int(sizes[self.rank])])
        as_bytes(out)[...] = np.frombuffer(b"".join(parts), np.uint8)

    def _send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        key = self._message_key(self.rank, peer, tag)
        self._link.ask({"do": "post", "key": key}, record + array.tobytes())
        yield _Sent(self._link)

    def _recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        peers = range(self.size) if peer is None else [peer]
        keys = [self._message_key(one, self.rank, tag) for one in peers]
        answer = self._link.ask({"do": "take", "keys": keys})
        yield answer
        record[:] = answer.payload[:RECORD_BYTES]
        content = np.frombuffer(answer.payload[RECORD_BYTES:], np.uint8)
        if content.size == array.nbytes:  # else the caller says what differs
            as_bytes(array)[...] = content

    def _message_key(self, sender: int, receiver: int, tag: int) -> str:
        return f"{self._name}/p{sender}>{receiver}#{tag}"

    # A long wait

    def look_around(self, work: Work, waited_s: float) -> None:
        """Raise if a rank has left."""
        gone = sorted(self._link.gone & set(self.ranks))
        if gone and not work.arrived:
            raise DistributedError(
                f"{work.call.name}: {name_ranks(gone)} has ended, rank {self.ranks[self.rank]} "
                "still waits for it; every rank must make the same calls"
            )

    def sightings(self, work: Work) -> dict[int, Sighting]:
        """Which ranks have come to a call, as far as the store knows."""
        if not self._unanswered:
            return {}
        key = f"{self._name}/{self._unanswered[0]}"
        answer = self._link.ask({"do": "who", "key": key})
        end = time.monotonic() + 1.0
        while not answer.Test():
            if time.monotonic() > end:
                return {}
            time.sleep(1e-3)
        who = answer.message["who"]
        here = Sighting(work.communicator.key, work.call.sequence, "has made the call")
        away = Sighting(0, 0, "has not made the call")
        return {rank: here if rank in who else away for rank in self.ranks}


class _Sent:
    """Everything that was to be sent has left this process."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def Test(self) -> bool:
        """Whether it has."""
        return self._link.idle()
