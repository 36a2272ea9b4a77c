"""Small disks for a while: a tmpfs of a given size, in a mount namespace of this process alone. Linux only.

Nothing of them is left on the machine, however this process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


def enter_namespace() -> str | None:
    """Mounts of this process are its own from here on; a sentence says why that cannot be. Before any thread is started."""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
        return f"this machine allows no mounts ({os.strerror(ctypes.get_errno())})"
    if user:  # root inside, and nowhere else
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    made = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True)
    return f"this machine allows no mounts ({made.stderr.strip()})" if made.returncode else None


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """`folder` is a disk of `size` bytes."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "speech-xl", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def change_disk(folder: Path, *options: str) -> None:
    """Its size or whether it can be written to: size=BYTES, ro, rw."""
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(folder)], check=True)


def used_bytes(folder: Path) -> int:
    """Bytes in use on the disk of a folder."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
