"""Running English text from free packages of Debian: passages of sentences, and short definitions.

wordnet (definitions and examples), fortunes, bible-kjv-text (the command `bible`) and anarchism (a long text in HTML).
A source that is not installed is left out. A passage is a list of sentences that belong together.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

_WORDNET = Path("/usr/share/wordnet")
_FORTUNES = Path("/usr/share/games/fortunes")
_ANARCHISM = Path("/usr/share/doc/anarchism/html")


_COARSE = re.compile(
    r"\b(sex|rape|negro|nigg|whor|bitch|fuck|shit|breast|nude|virgin|slut|jew|homo|lesbian|gay)", re.IGNORECASE
)


def _sentences(text: str) -> list[str]:
    parts = re.split(r"(?<=[.!?]) +(?=[A-Z\"'])", re.sub(r"\s+", " ", text).strip())
    return [p for p in parts if 3 <= len(p.split()) <= 60]


def _readable(text: str) -> bool:
    return text.isascii() and sum(c.isalpha() or c in " ,.'" for c in text) > 0.93 * len(text)


def wordnet() -> list[list[str]]:
    """Examples of one meaning, after its definition."""
    passages = []
    for path in sorted(_WORDNET.glob("data.*")):
        for line in path.read_text(errors="ignore").splitlines():
            if "|" not in line:
                continue
            gloss = line.split("|", 1)[1].strip()
            texts = [re.split(r";\s*\"", gloss)[0].rstrip(".; "), *re.findall(r'"([^"]{15,200})"', gloss)]
            passage = [t[0].upper() + t[1:].rstrip(".") + "." for t in texts if len(t) > 25 and _readable(t)]
            if passage:
                passages.append(passage)
    return passages


def definitions() -> list[tuple[str, str]]:
    """(noun, what it is in 3 to 9 words), both lower case."""
    path, found = _WORDNET / "data.noun", []
    if not path.exists():
        return []
    for line in path.read_text(errors="ignore").splitlines():
        if "|" not in line or line.startswith(" "):
            continue
        noun = line.split()[4].replace("_", " ")
        gloss = re.split(r"[;:(]", line.split("|", 1)[1])[0].strip().rstrip(".")
        starts = gloss.startswith(("a ", "an ", "the ", "someone "))
        plain = noun.isascii() and noun.islower() and noun not in gloss and _readable(gloss)
        if plain and starts and 3 <= len(gloss.split()) <= 9:
            found.append((noun, gloss))
    return found


def fortunes() -> list[list[str]]:
    """Passages of Debian's fortunes, each a list of sentences."""
    passages = []
    for path in sorted(_FORTUNES.glob("*")):
        if path.suffix in (".dat", ".u8"):
            continue
        for text in path.read_text(errors="ignore").split("\n%\n"):
            text = re.sub(r"\s+", " ", re.sub(r"\n\s*--.*", "", text, flags=re.DOTALL)).strip()
            fits = 20 < len(text) < 900 and _readable(text) and not _COARSE.search(text)
            if fits and (sentences := _sentences(text)):
                passages.append(sentences)
    return passages


def bible() -> list[list[str]]:
    """Every chapter's verses, in stretches of eight."""
    if not shutil.which("bible"):
        return []
    text = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=False).stdout
    chapters: dict[str, list[str]] = {}
    for chapter, verse in re.findall(r"^(\S+?\d+):\d+ (.*)$", text, flags=re.MULTILINE):
        if len(verse.split()) <= 45:
            chapters.setdefault(chapter, []).append(verse.strip())
    return [verses[i : i + 8] for verses in chapters.values() for i in range(0, len(verses), 8)]


def anarchism() -> list[list[str]]:
    """Paragraphs."""
    passages = []
    for path in sorted(_ANARCHISM.rglob("*.htm*")):
        for part in re.findall(r"<p[^>]*>(.*?)</p>", path.read_text(errors="ignore"), flags=re.DOTALL | re.IGNORECASE):
            text = html.unescape(re.sub(r"<[^>]+>", "", part))
            text = re.sub(r"\[[^\]]*\]|\([^)]*\)", "", text.replace("\u2019", "'"))
            text = re.sub(r"\s+(?=[.,;:!?])", "", text)
            sentences = [s for s in _sentences(text) if _readable(s) and "section" not in s]
            if len(sentences) >= 2:
                passages.append(sentences)
    return passages


SOURCES: dict[str, Callable[[], list[list[str]]]] = {
    "wordnet": wordnet,
    "fortunes": fortunes,
    "bible": bible,
    "anarchism": anarchism,
}
