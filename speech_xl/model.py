"""A loaded model: its configuration, its prompt and the backend that computes it.

It chooses the ratio of a recording. It knows no audio and keeps nothing of what is heard.
"""

from __future__ import annotations

from pathlib import Path

from speech_xl.backend import Backend, load_backend
from speech_xl.checkpoints import check_checkpoint, fingerprint, resolve_checkpoint, resolve_default
from speech_xl.config import SAMPLING_RATE, ModelConfig
from speech_xl.errors import ScheduleError
from speech_xl.fair_lock import FairLock
from speech_xl.front_end import make_front_end
from speech_xl.prompt import LONGEST_ANSWER, Prompt
from speech_xl.recall_ahead import RecallAhead
from speech_xl.schedule import Ratio, check_ratio, memory_slots, ratio_for_budget
from speech_xl.summarizers import interval_of, ratios_of
from speech_xl.together import Together

DEFAULT = "default"  # the ratio that the checkpoint's training recommends


def check_choice(config: ModelConfig, ratio: Ratio | str, budget: int | None) -> None:
    """Raise ScheduleError for what no recording can be heard with."""
    if ratio == DEFAULT:
        return
    if budget is not None:
        raise ScheduleError("A memory budget chooses the ratio itself; give a ratio or a budget, not both.")
    if isinstance(ratio, str):
        raise ScheduleError(f"There is no ratio {ratio!r}; choose {DEFAULT}, raw or a number.")
    check_ratio(ratio, interval_of(config), ratios_of(config))


class SpeechModel:
    """A loaded model: configuration, prompt and backend. `lock` admits one caller to the backend at a time,
    in order of arrival; `together` answers what is asked of one memory at once, and `ahead` recalls what will be asked about.
    `note`: a line for the user about which model this is, if there is one to say.
    """

    def __init__(self, folder: Path, config: ModelConfig, prompt: Prompt, backend: Backend, note: str | None = None):
        self.folder = folder
        self.config = config
        self.prompt = prompt
        self.backend = backend
        self.front_end = make_front_end(folder, config, prompt, backend)
        self.fingerprint = fingerprint(folder)
        self.note = note
        self.lock = FairLock()
        self.together = Together(self)
        self.ahead = RecallAhead(self)

    @classmethod
    def load(cls, model: str | None = None, backend: str = "auto", memory_bits: int = 16) -> SpeechModel:
        """Load the default (None), "small", "nano", a checkpoint folder or a Hub id. 16 memory bits: not quantized."""
        folder, note = resolve_default() if model is None else (resolve_checkpoint(model), None)
        config = check_checkpoint(folder)
        made = load_backend(backend, folder, config, memory_bits)
        return cls(folder, config, Prompt.load(folder, config), made, note)

    @property
    def interval(self) -> int:
        """Speech tokens per interval."""
        return interval_of(self.config)

    @property
    def horizon(self) -> int | None:
        """Memory slots that an interval sees while it is heard; None: all."""
        return self.config.sst.horizon if self.config.sst else None

    @property
    def ratios(self) -> tuple[int, ...]:
        """Ratios that may be asked for, beside raw."""
        return ratios_of(self.config)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of a memory slot's keys and values in all layers."""
        return self.backend.storage.bytes_per_slot(self.config, self.backend.itemsize)

    def position_warnings(self, positions: int) -> tuple[str, ...]:
        """A sentence if that many positions are more than the decoder was trained for, else nothing."""
        known = self.config.decoder.max_position_embeddings
        if positions <= known:
            return ()
        return (
            f"{positions:,} positions are in use and the decoder was trained for {known:,}: answers may be wrong; "
            "take a larger ratio or ask about a span.",
        )

    def choose_ratio(self, ratio: Ratio | str, budget: int | None, seconds: float | None) -> Ratio:
        """The one ratio of a recording, from what was asked for and the length its file declares."""
        check_choice(self.config, ratio, budget)
        if budget is not None:
            if seconds is None:
                raise ScheduleError(
                    "The file does not say how long it is, so no budget can be kept; give a ratio instead."
                )
            tokens = self.config.tokens_for(round(seconds * SAMPLING_RATE))
            prefix = len(self.prompt.prefix_ids)
            return ratio_for_budget(budget, tokens, self.interval, self.ratios, self.bytes_per_slot, prefix)
        if isinstance(ratio, str):  # DEFAULT, as checked above
            sst = self.config.sst
            return sst.default_ratio if sst is not None and sst.trained else self.ratio_for_context(seconds)
        return ratio

    def ratio_for_context(self, seconds: float | None) -> Ratio:
        """Without trained SSTs nothing is left out that the decoder has positions for: the smallest ratio, raw first."""
        if seconds is None:
            return max(self.ratios)
        tokens = self.config.tokens_for(round(seconds * SAMPLING_RATE))
        spoken = len(self.prompt.prefix_ids) + self.interval + LONGEST_ANSWER
        room = self.config.decoder.max_position_embeddings - spoken
        fitting = (r for r in (None, *sorted(self.ratios)) if memory_slots(tokens, self.interval, r) <= room)
        return next(fitting, max(self.ratios))
