r"""The ranks' output: whole lines, each prefixed by its rank, stdout to stdout, stderr to stderr.

Progress bars rewrite their line with a carriage return. The rule for them, and for every line
that is not finished yet (prompts, dots): **a log gets finished lines in their last state; a
terminal shows, below them, the unfinished line of the rank that wrote last.** So a bar of rank 0
stays one line that moves on a terminal, and leaves one line, its last state, in a log.

::

    rank's pipe -> Line (cut, prefix) -> Output (whose unfinished line is shown) -> Sink -> fd
"""

import contextlib
import os
import select

MAX_LINE_BYTES = 1 << 20
# A pipe that poll reports writable takes this much without blocking (POSIX PIPE_BUF).
WRITE_BYTES = 4096
CONGESTED_BYTES = 1 << 20
ERASE = b"\r\x1b[K"


class Line:
    r"""Cuts one stream of a rank into finished, prefixed lines.

    Args:
        prefix: Put before each line.

    >>> line = Line(b"[0] ")
    >>> line.feed(b"\r 50%\r100%\nloss"), line.unfinished, line.close()
    ([b'[0] 100%\n'], b'[0] loss', [b'[0] loss\n'])
    """

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the rank.

        Returns:
            The lines that they finish.
        """
        *finished, tail = (self._tail + data).split(b"\n")
        if b"\r" in tail:
            # Keep the last state only, and a \r at the end: it may be half of \r\n.
            start = tail.rstrip(b"\r").rfind(b"\r") + 1
            tail = tail[start:]
        if len(tail) > MAX_LINE_BYTES:
            finished, tail = [*finished, tail], b""
        self._tail = tail
        return [self._finish(line) for line in finished]

    def _finish(self, line: bytes) -> bytes:
        return self._prefix + line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n"

    @property
    def unfinished(self) -> bytes:
        """The prefixed line so far; empty at the start of a line."""
        text = self._tail.rstrip(b"\r")
        return self._prefix + text if text.strip() else b""

    def close(self) -> list[bytes]:
        """The rank has ended: finish its last line.

        Returns:
            One line, or none.
        """
        line, self._tail = self.unfinished, b""
        return [line + b"\n"] if line else []


class Sink:
    """One of tlrun's own streams. Writing never blocks: what the reader does not take, waits.

    Args:
        fd: Where to write.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.terminal = os.isatty(fd)
        self.pending = bytearray()
        self.broken = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def columns(self) -> int:
        """The terminal's width; 80 if it does not say."""
        with contextlib.suppress(OSError):
            return os.get_terminal_size(self.fd).columns or 80
        return 80

    def write(self, data: bytes) -> None:
        """Queue bytes and write what can be written now."""
        self.pending += data
        self.flush()

    def flush(self) -> None:
        """Write pending bytes while the reader takes them."""
        try:
            while self.pending and self._poll.poll(0):
                written = os.write(self.fd, self.pending[:WRITE_BYTES])
                del self.pending[:written]
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
        if self.broken:
            self.pending.clear()


class Output:
    """Both of tlrun's streams, and the unfinished line that a terminal shows.

    Args:
        out: tlrun's stdout.
        err: tlrun's stderr.
    """

    def __init__(self, out: Sink, err: Sink) -> None:
        self.sinks = (out, err)
        self._shown: tuple[Line, Sink] | None = None

    @property
    def pending(self) -> int:
        """Number of bytes that the readers have not taken."""
        return sum(len(sink.pending) for sink in self.sinks)

    @property
    def congested(self) -> bool:
        """The reader is slow: the ranks' output should wait in their pipes."""
        return self.pending > CONGESTED_BYTES

    @property
    def broken(self) -> bool:
        """A reader is gone."""
        return any(sink.broken for sink in self.sinks)

    def feed(self, line: Line, sink: Sink, data: bytes) -> None:
        """Take bytes of a rank's stream.

        Args:
            line: The stream's state.
            sink: One of `sinks`.
            data: What the rank wrote; empty when it has ended.
        """
        lines = line.feed(data) if data else line.close()
        if sink.terminal and line.unfinished:
            shown: tuple[Line, Sink] | None = (line, sink)
        elif self._shown is not None and self._shown[0] is line:
            shown = None
        else:
            shown = self._shown
        self._erase()
        sink.write(b"".join(lines))
        if shown is not None:
            text = shown[0].unfinished.decode(errors="replace")
            shown[1].write(text[: shown[1].columns() - 1].encode())
        self._shown = shown

    def write(self, sink: Sink, data: bytes) -> None:
        """Write whole lines as they are."""
        self._erase()
        sink.write(data)

    def _erase(self) -> None:
        if self._shown is not None:
            self._shown[1].write(ERASE)
            self._shown = None
