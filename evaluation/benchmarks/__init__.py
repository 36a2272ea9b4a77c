"""Public benchmarks: a user's own copy becomes the evaluation's lines, and what was said becomes the benchmark's own table.

One file a benchmark; docs/benchmarks_public.md says which layouts are read and what is assumed.
"""

from __future__ import annotations

from evaluation.benchmarks.audiomarathon import AUDIOMARATHON
from evaluation.benchmarks.benchmark import Benchmark
from evaluation.benchmarks.longspeech import LONGSPEECH
from evaluation.benchmarks.voicegiraffe import VOICEGIRAFFE

BENCHMARKS: dict[str, Benchmark] = {
    "audiomarathon": AUDIOMARATHON,
    "longspeech": LONGSPEECH,
    "voicegiraffe": VOICEGIRAFFE,
}
