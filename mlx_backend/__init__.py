"""The MLX backend (Apple Silicon; on Linux MLX's CPU build): tensor operations for the core's plans."""

import contextlib
import ctypes
import platform

if platform.system() == "Linux":
    # MLX's CPU build brings a slow reference BLAS; OpenBLAS, loaded first, makes it 10 to 20 times faster.
    with contextlib.suppress(OSError):  # not installed: everything works, slowly
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
