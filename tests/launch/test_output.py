"""The prefixing of output lines, progress bars, and sinks that never block."""

import os
import pty
import time

import pytest

from tensorlib.launch.output import ERASE, MAX_LINE_BYTES, Line, Output, Sink


def feed(*chunks: bytes) -> bytes:
    """Every line that the chunks make."""
    line = Line(b"[1] ")
    return b"".join(x for chunk in chunks for x in line.feed(chunk)) + b"".join(line.close())


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"a\nb\n"], b"[1] a\n[1] b\n"),
        ([b"a", b"b", b"\n"], b"[1] ab\n"),
        ([b"\n"], b"[1] \n"),
        ([b"no newline"], b"[1] no newline\n"),
        ([b"dos\r\n", b"half\r", b"\nrest\n"], b"[1] dos\n[1] half\n[1] rest\n"),
        ([b"\r  0%", b"\r 50%", b"\r100%", b"\n"], b"[1] 100%\n"),
        ([b"\r  0%\r 50%\r100%\nloss\n"], b"[1] 100%\n[1] loss\n"),
        ([b"\r 50%", b"\r     ", b"\r"], b""),
        ([b"\xe2\x82", b"\xac\n"], "[1] \N{EURO SIGN}\n".encode()),
        ([b""], b""),
    ],
)
def test_lines(chunks: list[bytes], expected: bytes) -> None:
    assert feed(*chunks) == expected


def test_a_line_without_end_is_cut() -> None:
    line = Line(b"[0] ")
    lines = [x for _ in range(3) for x in line.feed(b"x" * (MAX_LINE_BYTES // 2))]
    assert len(lines) == 1
    assert MAX_LINE_BYTES < len(lines[0]) < 2 * MAX_LINE_BYTES


def test_streams_do_not_interleave_within_a_line() -> None:
    read, write = os.pipe()
    output = Output(Sink(write), Sink(write))
    first, second = Line(b"[0] "), Line(b"[1] ")
    output.feed(first, output.sinks[0], b"one ")
    output.feed(second, output.sinks[1], b"two\n")
    output.feed(first, output.sinks[0], b"line\n")
    assert os.read(read, 100) == b"[1] two\n[0] one line\n"


def test_a_terminal_shows_the_bar_below_finished_lines() -> None:
    control, terminal = pty.openpty()
    output = Output(Sink(terminal), Sink(terminal))
    bar, other = Line(b"[0] "), Line(b"[1] ")
    out, err = output.sinks
    output.feed(bar, err, b"\r 10%")
    output.feed(other, out, b"loss 1\n")
    output.feed(bar, err, b"\r100%\n")
    expected = b"[0]  10%" + ERASE + b"[1] loss 1\r\n" + b"[0]  10%" + ERASE + b"[0] 100%\r\n"
    seen = b""
    while len(seen) < len(expected):
        seen += os.read(control, 1000)
    assert seen == expected


def test_a_slow_reader_does_not_block() -> None:
    read, write = os.pipe()
    sink = Sink(write)
    start_s = time.monotonic()
    sink.write(b"x" * 3_000_000)
    assert time.monotonic() - start_s < 5
    assert Output(sink, sink).congested
    taken = 0
    while sink.pending:
        taken += len(os.read(read, 1 << 20))
        sink.flush()
    os.set_blocking(read, False)
    assert taken + len(os.read(read, 1 << 20)) == 3_000_000


def test_a_reader_that_is_gone_is_noticed() -> None:
    read, write = os.pipe()
    os.close(read)
    sink = Sink(write)
    sink.write(b"x")
    assert sink.broken
    assert not sink.pending
