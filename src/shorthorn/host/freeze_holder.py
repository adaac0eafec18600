"""The process that holds a freeze: frozen file systems thaw although the daemon is dead.

Owns the promise that what it froze thaws when it is told to, when its standard input closes (the
daemon died, however) or after its time. Run as a file by `python -I -S`, by `host.freeze` only: it
imports nothing of this package, so that it starts in milliseconds and has nothing to load while a
file system is frozen.

Arguments: seconds to hold, mount points. On standard output, one line each: `ready`; after `FREEZE`
was read, `frozen`; at the end `thawed`, or `expired` when the time was over or somebody else has
thawed. Instead of the first two `failed <errno> <index of the mount point>`, and then nothing is
frozen.
"""

import fcntl
import os
import select
import signal
import sys
import time

# linux/fs.h: _IOWR('X', 119, int), _IOWR('X', 120, int)
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
FREEZE = b"f"
THAW = b"t"


def main(arguments: list[str]) -> None:
    """Hold one freeze. Returns after the thaw."""
    # Only SIGKILL may end it while it holds a freeze; a group signal for the daemon is not for it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    _spare_from_oom_killer()
    timeout_s = float(arguments[0])
    descriptors: list[int] = []
    for index, path in enumerate(arguments[1:]):
        try:
            descriptors.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as exc:
            _say(f"failed {exc.errno} {index}")
            return
    _say("ready")
    if os.read(0, 1) != FREEZE:
        return
    deadline = time.monotonic() + timeout_s
    held: list[int] = []
    try:
        for index, descriptor in enumerate(descriptors):
            try:
                fcntl.ioctl(descriptor, FIFREEZE, 0)
            except OSError as exc:
                _say(f"failed {exc.errno} {index}")
                return
            held.append(descriptor)
        _say("frozen")
        readable, _, _ = select.select([0], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        all_held = _thaw(held)
    _say("thawed" if readable and all_held else "expired")


def _thaw(descriptors: list[int]) -> bool:
    """Thaw all in reverse order; False if one was not frozen any more."""
    all_held = True
    for descriptor in reversed(descriptors):
        try:
            fcntl.ioctl(descriptor, FITHAW, 0)
        except OSError:
            all_held = False
    return all_held


def _spare_from_oom_killer() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except OSError:
        pass


def _say(line: str) -> None:
    try:  # noqa: SIM105 - each import lengthens the start
        os.write(1, line.encode() + b"\n")
    except OSError:  # our parent is dead; the thaw matters, not the report
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
