"""Whose recordings have been heard: memories by id, in RAM, on disk, or heard now, once for everybody who waits.

A memory's id follows from the recording's hash, the model and how it is compressed, so that the same audio is not heard
again. Owners see their own alone. It knows no requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from dataclasses import dataclass

from server.errors import ApiError
from server.hearing import Hearing, Kept, Seat
from server.metrics import Metrics
from server.recordings import Recording
from server.resident import Key, Resident
from server.settings import Settings
from server.store import Entry, Store
from server.workers import Workers
from speech_xl.audio import probe
from speech_xl.clock import clock
from speech_xl.config import SAMPLING_RATE
from speech_xl.conversation import Listening
from speech_xl.errors import MemoryFileError, OutputError, ScheduleError, without_folder
from speech_xl.memory import AudioMemory, load_memory, save_memory
from speech_xl.model import DEFAULT, SpeechModel
from speech_xl.schedule import Ratio, format_bytes, memory_slots
from speech_xl.slices import check_span
from speech_xl.summarizers import choose_summarizer

Span = tuple[float | None, float | None]  # start and end in seconds, None where none was given


@dataclass(frozen=True)
class Compression:
    """How a client wants a recording compressed: a ratio or a budget in bytes, as `Listening` has them."""

    ratio: Ratio | str = DEFAULT
    budget: int | None = None


class Library:
    """The server's memories. `hear` and `find` are for the event loop, the rest for any thread."""

    def __init__(self, model: SpeechModel, settings: Settings, listening: Workers, metrics: Metrics):
        self.model, self.listening, self.metrics = model, listening, metrics
        self._settings = settings
        self.store = Store(settings.store, settings.store_bytes)
        self.resident = Resident(settings.resident_bytes)
        self.hearings: dict[Key, Hearing] = {}
        self._loading = threading.Lock()  # a memory that many ask for is read once
        self._summarizer = choose_summarizer("auto", model.config)[0].name

    def identify(self, sha256: str, ratio: str, summarizer: str) -> str:
        """The id of what this model keeps of a recording; `ratio` in words."""
        words = json.dumps([sha256, self.model.fingerprint, ratio, summarizer])
        return f"mem_{hashlib.sha256(words.encode()).hexdigest()[:32]}"

    def check_length(self, seconds: float | None) -> None:
        """ApiError 413 for a recording of more hours than are taken; None is a length that nobody knows yet."""
        if seconds is not None and seconds > self._settings.hours * 3600:
            raise ApiError(
                413,
                f"The recording is {clock(seconds)} long or more and this server takes {self._settings.hours:g} h; "
                "cut it.",
                "audio_too_long",
            )

    def check_size(self, size: int) -> None:
        """ApiError 413 for a memory of more bytes than fit into the server's."""
        if size > self._settings.resident_bytes:
            raise ApiError(
                413,
                f"The memory takes {format_bytes(size)} or more and this server allows "
                f"{format_bytes(self._settings.resident_bytes)}; choose a larger ratio.",
                "memory_too_large",
            )

    def _plan(self, recording: Recording, compression: Compression, span: Span) -> Ratio:
        """The ratio that a recording will be heard at, once all is checked that can be without hearing it."""
        with recording.named() as path:
            seconds = probe(path).seconds
        self.check_length(seconds)
        check_span(*span, seconds)
        ratio = self.model.choose_ratio(compression.ratio, compression.budget, seconds)
        tokens = self.model.config.tokens_for(round((seconds or 0) * SAMPLING_RATE))
        self.check_size(memory_slots(tokens, self.model.interval, ratio) * self.model.bytes_per_slot)
        return ratio

    async def hear(
        self, owner: str, recording: Recording, compression: Compression, span: Span = (None, None)
    ) -> Kept | Seat:
        """What is known of a recording, or a seat where it is being heard. The file is closed here, sooner or later.

        ApiError or SpeechXLError at once for whatever can be refused before it is heard; 429 if too many wait.
        """
        is_ours = True
        try:
            ratio = await asyncio.to_thread(self._plan, recording, compression, span)
            name = self.identify(recording.sha256, "raw" if ratio is None else str(ratio), self._summarizer)
            if (owner, name) not in self.hearings:
                memory = await asyncio.to_thread(self._look_up, owner, name, True)
                if memory is not None:
                    self.metrics.memories.labels("reused").inc()
                    return Kept(memory, name, reused=True)
            if (owner, name) not in self.hearings:
                self.listening.admit()
                self.hearings[owner, name] = self._begin((owner, name), recording, ratio)
                is_ours = False  # the hearing's now
            return Seat(self.hearings[owner, name])
        finally:
            if is_ours:
                recording.close()

    def _begin(self, key: Key, recording: Recording, ratio: Ratio) -> Hearing:
        def forget() -> None:  # the next one who wants it begins anew
            if self.hearings.get(key) is hearing:
                del self.hearings[key]

        hearing = Hearing(self.listening, lambda this: self._listen(this, key, recording, ratio), forget)
        hearing.future.add_done_callback(lambda _: recording.close())
        return hearing

    def _listen(self, hearing: Hearing, key: Key, recording: Recording, ratio: Ratio) -> Kept:
        """On a thread."""
        heard_seconds = 0.0
        with recording.named() as path:
            listening = Listening(self.model, path, ratio)
            try:
                for heard in listening:
                    self.check_length(heard.seconds)  # a file may hold more than it declares
                    self.check_size(heard.memory_bytes)
                    hearing.check_wanted()
                    self.metrics.heard_seconds.inc(heard.seconds - heard_seconds)
                    heard_seconds = heard.seconds
            finally:
                listening.cancel()
        return self.keep(key, listening.memory)

    async def receive(
        self, owner: str, file: Recording, compression: Compression, span: Span = (None, None)
    ) -> Kept | Seat:
        """A file that may be a .sxl memory, which is taken in, or a recording, as for `hear`."""
        if not file.is_memory:
            return await self.hear(owner, file, compression, span)
        try:
            if compression != Compression():
                raise ScheduleError("A memory already has a ratio; leave ratio and memory_budget out.")
            return await self.find(owner, await asyncio.to_thread(self.take_in, owner, file))
        finally:
            file.close()

    async def find(self, owner: str, identifier: str) -> Kept:
        """A memory by its id; ApiError 404 if this owner has none of that name."""
        memory = await asyncio.to_thread(self._look_up, owner, identifier)
        if memory is None:
            raise no_memory()
        self.metrics.memories.labels("reused").inc()
        return Kept(memory, identifier, reused=True)

    def _look_up(self, owner: str, identifier: str, can_hear: bool = False) -> AudioMemory | None:
        """What the disk has, by way of RAM. A damaged file is an error only where the recording is not at hand."""
        path = self.store.path(owner, identifier)  # this marks it as used, too
        memory = self.resident.get((owner, identifier))
        if path is None:
            self.resident.drop((owner, identifier))
            return None
        if memory is not None:
            return memory
        with self._loading:
            if (memory := self.resident.get((owner, identifier))) is not None:
                return memory
            try:
                with without_folder(path.parent):
                    memory = load_memory(path, self.model)
            except MemoryFileError:
                if can_hear or not path.exists():  # thrown away meanwhile
                    return None
                raise
            self._hold((owner, identifier), memory)
        return memory

    def keep(self, key: Key, memory: AudioMemory) -> Kept:
        """What has just been heard. Where it cannot be kept on disk it can be asked all the same."""
        self.metrics.memories.labels("heard").inc()
        try:
            self.store.keep(*key, lambda path: save_memory(memory, path, self.model))
        except (ApiError, OutputError) as error:
            reason = str(error) if isinstance(error, ApiError) else "The server's disk has no room for this memory."
            return Kept(memory, None, reused=False, warnings=(f"{reason} It will be heard again next time.",))
        self._hold(key, memory)
        return Kept(memory, key[1], reused=False)

    def take_in(self, owner: str, recording: Recording) -> str:
        """Keep a .sxl file that a client sends -> its id. MemoryFileError if this model cannot be asked about it."""
        with recording.named() as path:
            memory = load_memory(path, self.model)
        # One of a recording that was still being heard has no hash, and its own file's stands for it.
        name = self.identify(memory.recording.sha256 or recording.sha256, memory.ratio, memory.summarizer)
        self.check_size(memory.bytes)
        self.store.copy(owner, name, recording.path)
        self._hold((owner, name), memory)
        return name

    def _hold(self, key: Key, memory: AudioMemory) -> None:
        self.resident.put(key, memory)
        self.model.ahead.add(memory)

    def entry(self, owner: str, identifier: str) -> Entry:
        """What a memory's file says; ApiError 404 if this owner has none of that name."""
        if (entry := self.store.entry(owner, identifier)) is None:
            raise no_memory()
        return entry

    def delete(self, owner: str, identifier: str) -> None:
        """ApiError 404 if this owner has none of that name."""
        was_there = self.store.delete(owner, identifier)
        self.resident.drop((owner, identifier))
        if not was_there:
            raise no_memory()

    def close(self) -> None:
        """Stop hearing, whoever waits; nothing half-heard is kept."""
        for hearing in list(self.hearings.values()):
            hearing.stop()


def no_memory() -> ApiError:
    """The refusal of an id that this key has no memory of, whoever else has."""
    return ApiError(
        404, "You have no memory with this id here; send the recording, or list your memories.", "no_memory"
    )
