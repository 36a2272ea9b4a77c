"""Importing the shared core loads no framework and no user interface."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import speech_xl

FOREIGN = {"torch", "mlx", "transformers", "gradio", "ray"}


def test_importing_every_core_module_loads_no_framework() -> None:
    names = sorted(
        m.name for m in pkgutil.walk_packages(speech_xl.__path__, "speech_xl.") if m.name != "speech_xl.__main__"
    )
    assert {"speech_xl.schedule", "speech_xl.batch.work", "speech_xl.commands.ask"} <= set(names)
    program = f"import sys, importlib\nfor n in {names}: importlib.import_module(n)\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not FOREIGN & {name.split(".")[0] for name in loaded}
