"""`python -m evaluation`: answers of a model on order-desk recordings of people it was never trained on.

python -m evaluation --human-data DATA --recordings 10 --ratios raw 2 4 8 16
python -m evaluation --human-data DATA --recordings 1 --numbered 60 --minutes 60
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import soundfile as sf

from evaluation.metrics import Answered, report
from evaluation.order_desk import DeskRecording, build_recording
from speech_xl.config import SAMPLING_RATE
from speech_xl.conversation import Listening, ask
from speech_xl.errors import SpeechXLError
from speech_xl.model import SpeechModel
from speech_xl.schedule import Ratio
from torch_backend.training.corpus import load_human, split_human
from torch_backend.training.recipe import load_recipe

RECIPE = Path(__file__).parent.parent / "torch_backend" / "training" / "configs" / "nano.json"


def parse_ratio(text: str) -> Ratio:
    return None if text == "raw" else int(text)


def answer_recording(
    model: SpeechModel, recording: DeskRecording, ratio: Ratio, summarizer: str, folder: Path
) -> tuple[list[Answered], float]:
    """Hear a recording once at one ratio, ask everything -> answers, times faster than real time."""
    path = folder / "recording.wav"
    sf.write(path, recording.samples, SAMPLING_RATE, subtype="PCM_16")
    started = time.monotonic()
    listening = Listening(model, path, ratio=ratio, summarizer=summarizer)
    for _ in listening:
        pass
    speed = len(recording.samples) / SAMPLING_RATE / (time.monotonic() - started)
    answered = []
    for question in recording.questions:
        asking = ask(model, listening.memory, question.text)
        for _ in asking:
            pass
        evidence = asking.answer.evidence
        strongest = (evidence[0].start, evidence[0].end) if evidence else None
        answered.append(Answered(question, asking.answer.answer, strongest))
    return answered, speed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--human-data", type=Path, required=True, help="folder with orders/ and digits/")
    parser.add_argument("--all-clips", action="store_true", help="the data are other people's: use all of them")
    parser.add_argument("--model", help="checkpoint folder or Hub id (default: the embedded model)")
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "mlx"))
    parser.add_argument("--memory-bits", type=int, default=16, choices=(16, 8, 4), help="as for ask")
    parser.add_argument("--summarizer", default="auto", help="as for ask")
    parser.add_argument("--recordings", type=int, default=5)
    parser.add_argument("--numbered", type=int, default=10, help="orders with an announced number in each recording")
    parser.add_argument("--plain", type=int, default=0, help="orders without one (haystack)")
    parser.add_argument("--minutes", type=float, default=0, help="stretch recordings to this length with silence")
    parser.add_argument("--noise", action="store_true", help="mix in kitchen.flac at 20 dB")
    parser.add_argument("--ratios", nargs="+", type=parse_ratio, default=[None, 2, 4, 8, 16])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        orders, digits = load_human(arguments.human_data, trim=False)
        if not arguments.all_clips:
            _, orders, _, digits = split_human(orders, digits, load_recipe(RECIPE).validation_voice)
        noise = sf.read(arguments.human_data / "kitchen.flac", dtype="float32")[0] if arguments.noise else None
        model = SpeechModel.load(arguments.model, arguments.backend, arguments.memory_bits)
        rows = {}
        with tempfile.TemporaryDirectory() as folder:
            for ratio in arguments.ratios:
                answered, speeds = [], []
                for i in range(arguments.recordings):
                    recording = build_recording(
                        orders, digits, arguments.numbered, arguments.plain, arguments.seed + i, noise,
                        least_seconds=arguments.minutes * 60,
                    )  # fmt: skip
                    answers, speed = answer_recording(model, recording, ratio, arguments.summarizer, Path(folder))
                    answered += answers
                    speeds.append(speed)
                rows[str(ratio or "raw")] = report(answered) | {"listening_speed": sorted(speeds)[len(speeds) // 2]}
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    names = list(next(iter(rows.values())))
    print("| ratio | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for ratio, figures in rows.items():
        print(f"| {ratio} | " + " | ".join(f"{figures[n]:.2f}" for n in names) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
