"""Where the other ranks are: a thread in each answers, whatever its main thread is doing.

A rank whose collective takes too long asks the others by a datagram each. A rank that waits itself
answers in which call; any other answers at which line of the user's code it is. A rank that is
stopped, or that holds the interpreter in foreign code, does not answer; the system of its host says
which, to this rank if it is there, else to any that is there and answers.
"""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import select
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorlib

if TYPE_CHECKING:
    from tensorlib.distributed.work import Work

_HERE = str(Path(tensorlib.__file__).resolve().parent)
_LIBRARY = {_HERE, *(str(Path(_HERE, part).resolve()) for part in ("distributed", "launch"))}
_DATAGRAM = 2048
_LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915  # the address of a network interface, see netdevice(7)
_TOLD = 16  # ranks whose state is told along with an answer


def checksum(numbers: tuple[int, ...]) -> int:
    """A short name of a group, which fits a datagram however many ranks it has; never 0."""
    return zlib.crc32(repr(numbers).encode()) or 1


@dataclass(frozen=True)
class Place:
    """How a rank can be asked.

    Attributes:
        host: its host's name.
        machine: the same for ranks that see each other's processes and loopback interface.
        addresses: of its host's network interfaces, as not all may be reached from elsewhere.
        port: where its lookout listens.
        pid: its process.
    """

    host: str
    machine: str
    addresses: tuple[str, ...]
    port: int
    pid: int


@dataclass(frozen=True)
class Sighting:
    """What is known of a rank.

    Attributes:
        group: the key of the group whose collective it waits in; 0 if it waits in none.
        sequence: the number of that call in its group.
        text: for people: "waits in all_reduce (call 3)", "is at train.py:12 in main".
    """

    group: int
    sequence: int
    text: str


class Lookout:
    """Answers for this process, and asks others.

    Args:
        local: all ranks are on this host, so that nothing needs to be heard from outside.
    """

    def __init__(self, local: bool) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._heard_at = _LOOPBACK if local else ""  # everywhere
        self._socket.bind((self._heard_at, 0))
        addresses = () if local else tuple(_addresses())
        port = self._socket.getsockname()[1]
        self.place = Place(socket.gethostname(), _machine(), addresses, port, os.getpid())
        self.secret = secrets.token_hex(8)  # of rank 0's, on all: others are not answered
        self.rank = 0
        self.places: dict[int, Place] = {}
        self._neighbours: dict[int, Place] = {}  # the other ranks on this machine
        self.waiting: Work | None = None
        self.given_up: Work | None = None  # the last call that took too long
        self._since = 0.0
        self._main = threading.main_thread().ident
        threading.Thread(target=self._answer, name="tensorlib-lookout", daemon=True).start()

    def introduce(self, rank: int, places: Mapping[int, Place], secret: str) -> None:
        """Take note of where all ranks of the job can be asked, and of their common secret."""
        self.rank, self.places, self.secret = rank, dict(places), secret
        self._neighbours = {
            other: place
            for other, place in places.items()
            if other != rank and place.machine == self.place.machine
        }

    def wait_begins(self, work: "Work") -> None:
        """The main thread waits for a call."""
        self.waiting, self._since = work, time.monotonic()

    def wait_ends(self) -> None:
        """It goes on."""
        self.waiting = None

    def ask(self, ranks: Iterable[int], limit_s: float = 1.0) -> dict[int, Sighting]:
        """Where some ranks are; those that do not answer in time are looked up or said to be."""
        missing = set(ranks)
        found: dict[int, Sighting] = {}
        states = self._states()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind((self._heard_at, 0))
            for rank in missing:
                self._send_question(asking, rank)
            end = time.monotonic() + limit_s
            while missing and (left_s := end - time.monotonic()) > 0:
                if not select.select([asking], [], [], left_s)[0]:
                    break
                answer = _parsed(asking.recv(_DATAGRAM))
                if answer.get("secret") == self.secret and answer["rank"] in missing:
                    missing.discard(answer["rank"])
                    found[answer["rank"]] = Sighting(
                        answer["group"], answer["sequence"], answer["text"]
                    )
                    states.update((int(rank), state) for rank, state in answer["states"].items())
        for rank in missing:
            found[rank] = Sighting(0, 0, self._silent(rank, states.get(rank, "")))
        return found

    def stopped(self, ranks: Iterable[int]) -> list[int]:
        """Which of the ranks on this host are stopped by a signal."""
        states = self._states()
        return [rank for rank in ranks if states.get(rank) == "T"]

    def _send_question(self, asking: socket.socket, rank: int) -> None:
        question = json.dumps({"secret": self.secret, "rank": rank}).encode()
        place = self.places[rank]
        for address in (_LOOPBACK,) if rank in self._neighbours else place.addresses:
            with contextlib.suppress(OSError):  # no way there: it does not answer
                asking.sendto(question, (address, place.port))

    def _states(self) -> dict[int, str]:
        """The other ranks of this machine that are stopped (T) or have ended (X)."""
        found = {}
        for rank, place in self._neighbours.items():
            try:
                stat = Path(f"/proc/{place.pid}/stat").read_text()
            except OSError:
                state = "X" if Path("/proc/self").exists() else ""
            else:
                state = stat.rpartition(")")[2].split()[0].upper()
            if state in ("T", "X", "Z"):
                found[rank] = "T" if state == "T" else "X"
        return found

    def _silent(self, rank: int, state: str) -> str:
        place = self.places[rank]
        where = f"process {place.pid}"
        if place.machine != self.place.machine:
            where += f" on {place.host}"
        if state == "T":
            return f"is stopped by a signal ({where}; kill -CONT {place.pid} lets it go on)"
        if state == "X":
            return f"has ended ({where})"
        return f"does not answer ({where})"

    def _answer(self) -> None:
        while True:
            try:
                data, sender = self._socket.recvfrom(_DATAGRAM)
            except OSError:
                return
            question = _parsed(data)
            if question.get("secret") != self.secret or question.get("rank") != self.rank:
                continue  # not for this rank: an address may stand for different hosts
            seen = self.sighting()
            answer = {"secret": self.secret, "rank": self.rank, "text": seen.text[:1000]}
            answer |= {"group": seen.group, "sequence": seen.sequence}
            answer["states"] = dict(list(self._states().items())[:_TOLD])
            with contextlib.suppress(OSError):
                self._socket.sendto(json.dumps(answer).encode(), sender)

    def sighting(self) -> Sighting:
        """Where this process's main thread is."""
        work = self.waiting
        if work is None:
            gone = self.given_up
            if gone is None or gone.is_over:
                return Sighting(0, 0, f"is at {self._line()}")
            text = f"has given up {gone.describe()}, is at {self._line()}"
            return Sighting(gone.communicator.key, gone.call.sequence, text)
        waited_s = time.monotonic() - self._since
        text = f"waits in {work.describe()} at {self._line()}, for {waited_s:.1f} s"
        return Sighting(work.communicator.key, work.call.sequence, text)

    def _line(self) -> str:
        """The innermost line of the main thread outside this library."""
        frame = sys._current_frames().get(self._main or 0)
        while frame is not None:
            path = frame.f_code.co_filename
            if not path.startswith("<frozen") and not _is_library(path):
                return f"{os.path.relpath(path)}:{frame.f_lineno} in {frame.f_code.co_name}"
            frame = frame.f_back
        return "an unknown line"


@functools.cache
def _is_library(path: str) -> bool:
    return any(str(Path(path).resolve()).startswith(part + os.sep) for part in _LIBRARY)


def _machine() -> str:
    """What the processes have in common that see each other in /proc and over loopback."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts += [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net")]
    return " ".join(parts)


def _addresses() -> list[str]:
    """The IPv4 addresses of this host's network interfaces, without loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                request = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith("127.")]


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
