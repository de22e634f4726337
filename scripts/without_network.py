"""Run a command where there is no network but the machine's own loopback.

    python scripts/without_network.py pytest -q

Linux only: the command gets a network namespace of its own. Where the system does not permit that, the
status is 2, or, with ``--if-permitted``, the command is run as it is, after a line that says so.
"""

import argparse
import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def leave_the_network() -> None:
    """Put this process, and all that it starts, into a network namespace with nothing in it.

    Raises:
        OSError: the system does not permit it.
    """
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        # Those who are not root need a user namespace around it.
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


def main() -> int:
    """Run the command; its status is ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--if-permitted", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("no command")
    try:
        leave_the_network()
    except (OSError, AttributeError) as error:
        print(f"no network namespace can be made here ({error})", file=sys.stderr)
        if not options.if_permitted:
            return 2
    os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    sys.exit(main())
