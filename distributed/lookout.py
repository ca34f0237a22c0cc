"""Where the other ranks are: a thread in each answers, whatever its main thread is doing.

A rank whose collective takes too long asks the others by a datagram each. A rank that waits itself
answers in which call; any other answers at which line of the user's code it is. A rank that is
stopped, or that holds the interpreter in foreign code, does not answer; on the same host the system
says which.
"""

import contextlib
import functools
import json
import os
import secrets
import select
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorlib

if TYPE_CHECKING:
    from tensorlib.distributed.work import Work

_HERE = str(Path(tensorlib.__file__).resolve().parent)
_LIBRARY = {_HERE, *(str(Path(_HERE, part).resolve()) for part in ("distributed", "launch"))}
_DATAGRAM = 2048


def checksum(ranks: tuple[int, ...]) -> int:
    """A short name of a group, which fits a datagram however many ranks it has; never 0."""
    return zlib.crc32(repr(ranks).encode()) or 1


@dataclass(frozen=True)
class Place:
    """How a rank can be asked."""

    host: str
    address: str
    port: int
    pid: int


@dataclass(frozen=True)
class Sighting:
    """What is known of a rank.

    Attributes:
        group: a checksum of the ranks of the group whose collective it waits in; 0 if it does not.
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
        name = socket.gethostname()
        address = "127.0.0.1"
        if not local:
            with contextlib.suppress(OSError):  # else the others get no answer, and say so
                address = socket.gethostbyname(name)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self.place = Place(name, address, self._socket.getsockname()[1], os.getpid())
        self.secret = secrets.token_hex(8)  # of rank 0's, on all: others are not answered
        self.places: dict[int, Place] = {}
        self.waiting: Work | None = None
        self.given_up: Work | None = None  # the last call that took too long
        self._since = 0.0
        self._main = threading.main_thread().ident
        threading.Thread(target=self._answer, name="tensorlib-lookout", daemon=True).start()

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
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind((self.place.address, 0))
            for rank in missing:
                place = self.places[rank]
                question = json.dumps({"secret": self.secret, "rank": rank}).encode()
                asking.sendto(question, (place.address, place.port))
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
        for rank in missing:
            found[rank] = Sighting(0, 0, self._silent(rank))
        return found

    def stopped(self, ranks: Iterable[int]) -> list[int]:
        """Which of the ranks on this host are stopped by a signal."""
        return [rank for rank in ranks if self._state(rank) in ("T", "t")]

    def _state(self, rank: int) -> str:
        place = self.places[rank]
        if place.host != self.place.host:
            return ""
        try:
            return Path(f"/proc/{place.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "X" if Path("/proc/self").exists() else ""

    def _silent(self, rank: int) -> str:
        pid = self.places[rank].pid
        state = self._state(rank)
        if state in ("T", "t"):
            return f"is stopped by a signal (process {pid}; kill -CONT {pid} lets it go on)"
        if state in ("X", "Z"):
            return f"has ended (process {pid})"
        return f"does not answer (process {pid} on {self.places[rank].host})"

    def _answer(self) -> None:
        while True:
            try:
                data, sender = self._socket.recvfrom(_DATAGRAM)
            except OSError:
                return
            question = _parsed(data)
            if question.get("secret") != self.secret:
                continue
            seen = self.sighting()
            answer = {"secret": self.secret, "rank": question["rank"], "text": seen.text[:1000]}
            answer |= {"group": seen.group, "sequence": seen.sequence}
            try:
                self._socket.sendto(json.dumps(answer).encode(), sender)
            except OSError:
                continue

    def sighting(self) -> Sighting:
        """Where this process's main thread is."""
        work = self.waiting
        if work is None:
            gone = self.given_up
            if gone is None or gone.is_over:
                return Sighting(0, 0, f"is at {self._line()}")
            text = f"has given up {gone.describe()}, is at {self._line()}"
            return Sighting(checksum(gone.communicator.ranks), gone.call.sequence, text)
        waited_s = time.monotonic() - self._since
        text = f"waits in {work.describe()} at {self._line()}, for {waited_s:.1f} s"
        return Sighting(checksum(work.communicator.ranks), work.call.sequence, text)

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


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
