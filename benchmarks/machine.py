"""The machine that a measurement was made on: its description, and the memory and processor time of this process.

It knows operating systems; what is measured is not its business.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "mlx", "mlx-lm", "transformers", "faster-whisper", "ctranslate2", "numpy")
STATUS = Path("/proc/self/status")


def describe_machine() -> dict[str, Any]:
    """JSON-ready: processor, cores, threads that are allowed, memory in bytes, system, versions of packages."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor_name(),
        "accelerator": accelerator_name(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def processor_name() -> str:
    """As the system calls it, with the widest vector instructions that tell how fast it multiplies."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or platform.processor()
    text = cpuinfo.read_text()
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    known = flags[1].split() if flags else []
    vectors = next((f" with {said}" for flag, said in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in known), "")
    return (name[1] if name else platform.machine()) + vectors


def accelerator_name() -> str | None:
    """The first NVIDIA GPU, by its driver; None where there is none. No framework is loaded to find out."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.splitlines()[0].strip() if found.returncode == 0 and found.stdout else None


def machine_in_words(machine: dict[str, Any]) -> str:
    """One line of a report."""
    threads = f"{machine['threads']} threads" if machine["threads"] else "all threads"
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    names = [machine["processor"], f"{machine['cores']} cores", threads, memory, machine["accelerator"]]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return f"{', '.join(str(n) for n in names if n)}; {machine['system']}, Python {machine['python']}, {versions}"


def _status_bytes(field: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024  # written in kB


def peak_bytes() -> int:
    """Most resident memory of this process so far, or since `forget_peak`."""
    if STATUS.exists():  # ru_maxrss would begin with that of the process which started this one
        return _status_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int | None:
    """Resident memory now; None where the system does not tell."""
    return _status_bytes("VmRSS") if STATUS.exists() else None


def forget_peak() -> bool:
    """Let `peak_bytes` begin again at what is resident now -> whether this system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
