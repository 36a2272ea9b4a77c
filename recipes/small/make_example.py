"""`python -m recipes.small.make_example`: speak the recording that the page offers as its example.

An evening in a town hall, five voices, about five minutes: text-to-speech of our own sentences. Beside the sound, a
JSON file tells who says what and when, and what can be asked about it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import soundfile as sf

from recipes.order_desk.tts import Voice, speak
from speech_xl.config import SAMPLING_RATE

TARGET = Path(__file__).parents[2] / "space" / "examples" / "town_meeting.ogg"
TITLE = "A town meeting, five voices"
BETWEEN_SENTENCES, BETWEEN_SPEAKERS = 0.35, 1.2  # seconds
LOUDNESS = 0.06  # RMS of every sentence: engines differ by far more than people in one room
VOICES = {
    "chair": Voice("flite", "slt", 155, 175, 0, 1.0),
    "engineer": Voice("flite", "rms", 155, 100, 0, 1.0),
    "beekeeper": Voice("flite", "awb", 150, 120, 0, 1.0),
    "librarian": Voice("espeak-ng", "en-gb-x-rp+f2", 150, 50, 1, 1.0),
    "announcer": Voice("espeak-ng", "en-us+f3", 150, 50, 1, 1.0),
}
SCRIPT = [
    (
        "chair",
        "Good evening, and welcome to the spring meeting of Alder Bay. My name is Margaret Hill, and I am your chair "
        "tonight. We have four things to talk about. The library, the old bridge, the bees on the school roof, and the summer "
        "market. Please keep your questions for the end. There is tea and apple cake at the back of the room.",
    ),
    (
        "librarian",
        "Thank you, Margaret. I am Helen Brooks, from the library. Last year we lent thirty one thousand books. That "
        "is four thousand more than the year before. The most popular book was a guide to garden birds. From the first of May "
        "the library will stay open until eight o'clock on Thursdays. On Sundays it stays closed, because we do not have enough "
        "volunteers. The reading room has a new roof. It cost nineteen thousand dollars, and half of the money came from a "
        "concert in the church. If you have old photographs of the harbor, please bring them to us. We will copy them and give "
        "them back within a week.",
    ),
    (
        "chair",
        "Thank you, Helen. Now to the bridge. Many of you have asked why it was closed in the winter. Here is our "
        "engineer, Daniel Reed.",
    ),
    (
        "engineer",
        "Good evening. Let me explain what a bridge does. Every bridge has to carry two kinds of load. The dead load "
        "is the weight of the bridge itself. The live load is everything that moves across it, such as cars, people and snow. "
        "Our bridge is an arch. It was built in eighteen ninety two, from granite that came from a quarry in the north. An arch "
        "is strong because every stone pushes on the next one, and the last stones push against the banks of the river. So the "
        "banks must not move. In January, the ice washed away the soil under the eastern bank. That is why I closed the bridge. "
        "The stones themselves are in good health. We will drive twelve steel piles into the ground and pour concrete around "
        "them. The work begins on the tenth of June and will take six weeks. Until then, people on foot may cross, but no cars "
        "and no trucks. The nearest crossing for cars is at Miller's Ford, three miles upstream.",
    ),
    (
        "chair",
        "Thank you, Daniel. Six weeks is shorter than I feared. Our next speaker is somebody the children know well.",
    ),
    (
        "beekeeper",
        "Hello, everybody. I am Robert Lang, and I keep the bees on the roof of the school. We started with two "
        "hives, and now we have seven. In a hive there is one queen. In summer she lays about two thousand eggs a day. The "
        "workers are all sisters. A young worker cleans the cells, then she feeds the young, and only in her last three weeks "
        "does she fly out for nectar. When she finds a good field, she comes home and dances. The direction of the dance tells "
        "the others where to fly, and its length tells them how far. To make one jar of honey, the bees fly about fifty "
        "thousand miles. Last autumn we took ninety jars, and the school sold them to buy a telescope. This year we lost one "
        "hive to the cold. Please plant clover and lavender, and do not use poison in your gardens. Visitors are welcome on "
        "Wednesday afternoon. Wear light clothes, and stay calm if a bee lands on you.",
    ),
    (
        "chair",
        "Thank you, Robert. I can say that the honey is excellent. And now the last announcement, about the summer market.",
    ),
    (
        "announcer",
        "The summer market opens on Saturday, the fourteenth of July, on the green behind the station. There will be "
        "forty stalls. A stall costs fifteen dollars, and schools and charities pay nothing. Please send your application to "
        "Olivia Grant by the end of May. The brass band plays at noon, and there is a boat race at three. Dogs must stay on a "
        "lead. If it rains, the market moves into the fish hall. We are still looking for somebody with a truck, who can bring "
        "the tables from the church.",
    ),
    ("chair", "Thank you. I liked the honey cake there last year. We have time for one question. Yes, Helen?"),
    ("librarian", "Can the children walk to school across the bridge while the work goes on?"),
    (
        "engineer",
        "Yes, they can. We will build a wooden walkway on the western side, with lamps. It will be open from seven in "
        "the morning until nine at night.",
    ),
    (
        "chair",
        "Thank you all. The next meeting is on the second of September, here in the hall. Before you go, one small thing. Somebody has left a green umbrella by the door. Please ask me for it. Good night, and a safe way home.",
    ),
]
QUESTIONS = [  # those that `small` answers rightly at its usual ratio: a visitor begins with them
    ("When does the work on the bridge begin?", "the tenth of June"),
    ("Who is the engineer?", "Daniel Reed"),
    ("Where is the nearest crossing for cars?", "Miller's Ford"),
    ("How much did the new roof cost?", "nineteen thousand dollars"),
    ("What did the school buy?", "a telescope"),
    ("What color is the umbrella?", "green"),
]


def main() -> None:
    """Write the example recording, its passages and its questions into space/examples."""
    parts, passages, at = [], [], 0
    for speaker, text in SCRIPT:
        first = at
        for sentence in text.replace(". ", ".\n").split("\n"):
            samples = speak(sentence, VOICES[speaker])
            samples = samples * (LOUDNESS / np.sqrt(np.mean(samples**2)))
            parts += [samples, np.zeros(round(BETWEEN_SENTENCES * SAMPLING_RATE), np.float32)]
            at += len(parts[-2]) + len(parts[-1])
        start, end = (round(n / SAMPLING_RATE, 2) for n in (first, at - len(parts[-1])))
        passages.append({"speaker": speaker, "start": start, "end": end, "text": text})
        parts.append(np.zeros(round((BETWEEN_SPEAKERS - BETWEEN_SENTENCES) * SAMPLING_RATE), np.float32))
        at += len(parts[-1])
    sound = np.clip(np.concatenate(parts), -1, 1)
    TARGET.parent.mkdir(exist_ok=True)
    wav = TARGET.with_suffix(".wav")
    sf.write(wav, sound, SAMPLING_RATE)
    encode = ["-loglevel", "error", "-i", str(wav), "-c:a", "libvorbis", "-q:a", "1", "-bitexact", str(TARGET)]
    subprocess.run(["ffmpeg", "-y", *encode], check=True)
    wav.unlink()
    document = {
        "title": TITLE,
        "suggestions": [question for question, _ in QUESTIONS],
        "answers": [answer for _, answer in QUESTIONS],
        "seconds": round(len(sound) / SAMPLING_RATE, 1),
        "passages": passages,
    }
    TARGET.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{TARGET}: {document['seconds']} s, {TARGET.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
