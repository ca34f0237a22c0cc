"""What mpiexec starts in place of a rank: lends MPI's environment and connections to tlrun.

Run by path as ``python -I -S stub.py SOCKET``, so that it starts fast and imports nothing of ours.
It ends with the code that tlrun sends, or with 1 when tlrun is gone.
"""

import json
import os
import socket
import sys


def main() -> int:
    """Lend, then wait for the rank's end.

    Returns:
        The exit code for mpiexec: 0 when the rank ended well.
    """
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(sys.argv[1])
        # MPICH's ranks speak with their process manager over an inherited socket, PMI_FD.
        lent = [int(os.environ["PMI_FD"])] if "PMI_FD" in os.environ else []
        message = json.dumps(dict(os.environ)).encode() + b"\n"
        sent = socket.send_fds(channel, [message], lent)
        channel.sendall(message[sent:])
        for fd in lent:
            os.close(fd)
        verdict = channel.recv(1)
    return verdict[0] if verdict else 1


if __name__ == "__main__":
    sys.exit(main())
