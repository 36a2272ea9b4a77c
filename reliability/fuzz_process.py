"""One fuzzer in a process of its own: `python -m reliability.fuzz_process TARGET FOLDER WORK FLAGS...`, flags as libFuzzer's.

What the target raises is noted and fuzzing goes on; a crash, a hang or too much memory ends the process, and libFuzzer
keeps the input. Python code of this project is watched for new paths.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
import traceback
from pathlib import Path

import atheris

WATCHED = ["speech_xl", "converters", "server", "gguf"]
MOST_MEMORY = 2 * 2**30  # bytes, beside what the process has before the first input
OWN_CHANGES = 0.7  # share of changes that know the input's structure


class Findings:
    """Exceptions that are none of ours, each kind of them once, with an input that brings it about."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def add(self, error: BaseException, data: bytes) -> None:
        """Keep an input and the error that it caused, once for each place in the code."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [
            f
            for f in frames
            if any(f"/{name}/" in f.filename for name in WATCHED) and "site-packages" not in f.filename
        ]
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in (*ours[-1:], frames[-1])]
        key = hashlib.sha256(" ".join([type(error).__name__, *places]).encode()).hexdigest()[:12]
        path = self._folder / key
        if not path.exists():
            path.write_bytes(data)
            said = {"kind": type(error).__name__, "says": str(error)[:300], "at": places, "input": str(path)}
            said["traceback"] = "".join(traceback.format_exception(error))[-4000:]
            path.with_suffix(".json").write_text(json.dumps(said, indent=1))


def limit_memory() -> None:
    """MemoryError beyond MOST_MEMORY of what the process asks for from now on."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (now + MOST_MEMORY, hard))


def main() -> None:
    """Feed one target until the time is over; words: the target, its folder, one for its files, the fuzzer's flags."""
    name, folder, work, flags = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    with atheris.instrument_imports(include=WATCHED, enable_loader_override=False):
        from reliability.fuzz_targets import TARGETS
        from speech_xl.errors import SpeechXLError

        target = TARGETS[name](work)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
        target.feed(seed) if seed else None
    if target.words:
        quoted = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
        (folder / "words.txt").write_text("".join(f'"{word}"\n' for word in quoted))
        flags.append(f"-dict={folder / 'words.txt'}")
    findings = Findings(folder / "findings")

    def feed(data: bytes) -> None:
        try:
            target.feed(data)
        except SpeechXLError:
            pass
        except Exception as error:
            findings.add(error, data)

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if target.mutate is not None and dice.random() < OWN_CHANGES:
            try:
                made = target.mutate(data, dice)
                if len(made) <= largest:
                    return made
            except (ValueError, TypeError, RecursionError, OverflowError):
                pass
        by_bytes: bytes = atheris.Mutate(data, largest)
        return by_bytes

    limit_memory()
    atheris.Setup([sys.argv[0], *flags, str(corpus)], feed, **({"custom_mutator": mutate} if target.mutate else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
