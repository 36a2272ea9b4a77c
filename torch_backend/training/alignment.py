"""Stage 1: encoder and adapter learn to say words in the decoder's own language.

Connectionist temporal classification (CTC, Graves et al. 2006) whose classes are the decoder's token
embeddings: a speech token's logit for a word is its scaled dot product with that word's embedding. So
speech tokens come out where the decoder already understands them.

Utterances are laid on one long tape that is cut into windows exactly as a recording is when it is heard:
words fall on window borders in training as often as they will in use.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from scipy.signal import lfilter
from tokenizers import Tokenizer

from speech_xl.config import HOP_LENGTH, SAMPLING_RATE, ModelConfig
from speech_xl.features import log_mel
from torch_backend.encoder import SpeechTower
from torch_backend.training import grammar
from torch_backend.training.augment import augment, spec_augment, warp_formants
from torch_backend.training.corpus import Clip
from torch_backend.training.state import Run, learning_rate, optimizers, set_learning_rate
from torch_backend.training.text import BLANK, spoken_ids


@dataclass(frozen=True)
class AlignmentPhase:
    name: str
    steps: int
    synthetic: int  # text-to-speech orders on each tape
    human: int  # human orders on each tape, labelled by the model itself when the phase starts
    strength: float  # of the augmentation, 0..1
    flat_start: float = 0.0  # weight of the guessed alignment's loss
    numbers: int = 0  # announced numbers beyond one an order
    formants: float = 0.0  # largest stretch of frequencies, as a natural logarithm


@dataclass(frozen=True)
class AlignmentStage:
    name: str
    phases: tuple[AlignmentPhase, ...]
    lr: float
    seed: int = 1
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    human_digits: float = 0.5  # share of announced numbers in human voices
    log_every: int = 25


@dataclass(frozen=True)
class Utterance:
    """What lies between two cuts of the tape."""

    samples: np.ndarray  # (n,) float32
    ids: list[int]  # spoken token ids, in order


class Ruler:
    """Measures speech tokens by the decoder's embeddings of everything that can be spoken."""

    def __init__(self, tokenizer: Tokenizer, embeddings: torch.Tensor):
        blank = tokenizer.token_to_id(BLANK)
        self.tokens = [blank, *sorted(set(spoken_ids(tokenizer, grammar.SPOKEN_WORDS)) - {blank})]
        self.classes = {token: c for c, token in enumerate(self.tokens)}
        self.rows = embeddings[self.tokens].detach()
        self.scale = embeddings.shape[1] ** 0.5
        # How long a token takes to say, roughly: its letters, or a digit's four.
        self.letters = {t: max(len(tokenizer.id_to_token(t)), 4 if tokenizer.id_to_token(t)[-1].isdigit() else 1)
                        for t in self.tokens}  # fmt: skip

    def log_probabilities(self, speech: torch.Tensor) -> torch.Tensor:
        """(N, D) speech tokens -> (N, classes); class 0 is the blank."""
        return F.log_softmax(speech @ self.rows.T * self.scale, dim=-1)

    def greedy(self, log_probabilities: torch.Tensor) -> list[int]:
        """Best path, repeats merged, blanks removed: token ids."""
        path = log_probabilities.argmax(-1).tolist()
        kept = [c for before, c in zip([0, *path], path, strict=False) if c and c != before]
        return [self.tokens[c] for c in kept]


def windows_of(config: ModelConfig, tape: np.ndarray) -> np.ndarray:
    """Cut a tape (n,) into its encoder windows' log-mels, (B, num_mel_bins, T), as features.WindowStream does."""
    hop = config.encoder.hop_frames * HOP_LENGTH
    context = config.encoder.context_frames * HOP_LENGTH
    count = -(-len(tape) // hop)
    padded = np.zeros(count * hop + 2 * context, np.float32)
    padded[context : context + len(tape)] = tape
    cut = np.lib.stride_tricks.sliding_window_view(padded, hop + 2 * context)[::hop]
    return log_mel(cut, config.encoder.num_mel_bins)


@dataclass(frozen=True)
class Tape:
    """Utterances one after another, in samples, and where each lies in speech tokens."""

    samples: np.ndarray  # (n,) float32
    ids: list[list[int]]  # spoken token ids of each utterance
    spans: list[slice]  # each utterance's tokens, pauses included: together they cover the tape
    voiced: list[slice]  # each utterance's tokens without the pauses


def lay_tape(config: ModelConfig, utterances: Sequence[Utterance], rng: random.Random) -> Tape:
    """Lay utterances on a tape with short pauses between them."""
    samples_per_token = config.frames_per_token * HOP_LENGTH
    parts, spans, voiced, at = [], [], [], 0
    for utterance in utterances:
        lead, tail = (int(rng.uniform(0.1, 0.5) * SAMPLING_RATE) for _ in range(2))
        parts += [np.zeros(lead, np.float32), utterance.samples, np.zeros(tail, np.float32)]
        cuts = np.cumsum([at, lead, len(utterance.samples), tail])
        start, first, last, stop = (round(int(c) / samples_per_token) for c in cuts)
        spans.append(slice(start, stop))
        voiced.append(slice(first, last))
        at = int(cuts[-1])
    return Tape(np.concatenate(parts), [u.ids for u in utterances], spans, voiced)


def hear(
    tower: SpeechTower,
    tape: np.ndarray,
    rng: np.random.Generator | None = None,
    strength: float = 0.0,
    formants: float = 0.0,
) -> torch.Tensor:
    """(n,) samples -> (N, D) speech tokens; with `rng`, each window's spectrogram is stretched and blanked."""
    mel = windows_of(tower.config, tape)
    if rng is not None:
        for window in mel:
            if formants:
                warp_formants(window, rng, formants)
            spec_augment(window, rng, strength)
    return tower(torch.from_numpy(mel)).flatten(0, 1)


def waveform(clip: Clip) -> np.ndarray:
    """(n,) float32 in [-1, 1]."""
    return clip.samples.astype(np.float32) / 32768


def background(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) float32: steady noise of random colour, -75 to -35 dB. Pauses hum too, and must stay blank."""
    noise = lfilter([1.0], [1.0, -rng.uniform(0, 0.97)], rng.standard_normal(n, np.float32)).astype(np.float32)
    return noise * (10 ** (rng.uniform(-75, -35) / 20) / noise.std())


def by_voice(clips: Sequence[Clip]) -> dict[str, dict[int, list[Clip]]]:
    """speaker -> digit -> clips, only speakers who say all ten."""
    found: dict[str, dict[int, list[Clip]]] = {}
    for clip in clips:
        found.setdefault(clip.speaker, {}).setdefault(clip.digit, []).append(clip)
    return {speaker: digits for speaker, digits in found.items() if len(digits) == 10}


@dataclass
class SpeechData:
    """Everything that training hears, the validation voice and orders left out."""

    synthetic_orders: list[Clip]
    synthetic_digits: list[Clip]
    human_orders: list[Clip]
    human_digits: list[Clip]
    noise: np.ndarray | None = None

    @cached_property
    def human_voices(self) -> dict[str, dict[int, list[Clip]]]:
        return by_voice(self.human_digits)


def self_label(tower: SpeechTower, ruler: Ruler, tokenizer: Tokenizer, orders: Sequence[Clip]) -> list[tuple[str, ...]]:
    """For each order, the one of the word sequences its slots allow that CTC finds likeliest.

    Human orders come with slots but without transcripts; a model trained on synthetic speech alone is good
    enough to choose between the few word orders.
    """
    chosen = []
    for clip in orders:
        with torch.inference_mode():
            heard = ruler.log_probabilities(hear(tower, waveform(clip)))
        candidates = grammar.candidates(clip.slots)
        targets = [[ruler.classes[t] for t in spoken_ids(tokenizer, words)] for words in candidates]
        lengths = torch.tensor([len(t) for t in targets])
        losses = F.ctc_loss(
            heard[:, None].expand(-1, len(targets), -1),
            torch.tensor([c for t in targets for c in t]),
            torch.full((len(targets),), len(heard)),
            lengths,
            reduction="none",
        )
        chosen.append(candidates[int(losses.argmin())])
    return chosen


def make_tape(
    stage: AlignmentStage,
    phase: AlignmentPhase,
    step: int,
    data: SpeechData,
    labels: Sequence[tuple[str, ...]],
    tokenizer: Tokenizer,
    config: ModelConfig,
) -> tuple[Tape, np.random.Generator]:
    """The tape of a step, a pure function of (seed, step) and the labels; and what goes on drawing for it."""
    rng = random.Random(f"{stage.seed}/{stage.name}/{step}")
    noise_rng = np.random.default_rng([stage.seed, step])
    utterances = []

    def add(samples: np.ndarray, ids: list[int]) -> None:
        utterances.append(Utterance(augment(samples, noise_rng, phase.strength, data.noise), ids))

    def number() -> None:
        if data.human_voices and rng.random() < stage.human_digits:
            voice = data.human_voices[rng.choice(sorted(data.human_voices))]
            clips = [rng.choice(voice[rng.randrange(10)]) for _ in range(2)]
        else:  # a synthetic voice has said one digit only
            clips = [rng.choice(data.synthetic_digits) for _ in range(2)]
        gap = np.zeros(int(rng.uniform(0.03, 0.25) * SAMPLING_RATE), np.float32)
        joined = np.concatenate([waveform(clips[0]), gap, waveform(clips[1])])
        # Few people say digits here, so each is made into several; half are heard through a telephone.
        joined = soxr.resample(joined, 1.0, noise_rng.uniform(0.88, 1.14), quality="LQ")
        if noise_rng.random() < 0.5:
            joined = soxr.resample(soxr.resample(joined, SAMPLING_RATE, 8000), 8000, SAMPLING_RATE)
        add(joined, spoken_ids(tokenizer, [grammar.DIGIT_WORDS[c.digit] for c in clips]))

    for _ in range(phase.synthetic):
        clip = rng.choice(data.synthetic_orders)
        add(waveform(clip), spoken_ids(tokenizer, clip.words))
        number()
    for _ in range(phase.human):
        which = rng.randrange(len(data.human_orders))
        add(waveform(data.human_orders[which]), spoken_ids(tokenizer, labels[which]))
        number()
    for _ in range(phase.numbers):
        number()
    rng.shuffle(utterances)
    tape = lay_tape(config, utterances, rng)
    if noise_rng.random() < phase.strength:
        tape.samples[:] += background(len(tape.samples), noise_rng)
    return tape, noise_rng


def flat_start(ruler: Ruler, log_probabilities: torch.Tensor, tape: Tape) -> torch.Tensor:
    """Cross-entropy against a guessed alignment: every token evenly in time by its letters, one frame each.

    CTC alone needs about a thousand steps to find out where words are; even a bad guess tells it at once
    (flat start, as hidden Markov models were begun with).
    """
    targets = torch.full((len(log_probabilities),), -1)
    for span, voiced, ids in zip(tape.spans, tape.voiced, tape.ids, strict=True):
        targets[span.start : voiced.start] = 0
        targets[voiced.stop : span.stop] = 0
        ends = np.cumsum([ruler.letters[t] for t in ids])
        middles = (ends - np.diff(ends, prepend=0) / 2) / ends[-1] * (voiced.stop - voiced.start)
        for token, middle in zip(ids, middles, strict=True):
            targets[voiced.start + int(middle)] = ruler.classes[token]
    return F.nll_loss(log_probabilities, targets, ignore_index=-1)


def ctc(ruler: Ruler, log_probabilities: torch.Tensor, tape: Tape) -> torch.Tensor:
    """Mean CTC loss per spoken token over the utterances of a tape."""
    ids = tape.ids
    pieces = [log_probabilities[s] for s in tape.spans]
    padded = torch.nn.utils.rnn.pad_sequence(pieces)  # (longest, utterances, classes)
    classes = torch.tensor([ruler.classes[t] for i in ids for t in i])
    lengths = torch.tensor([len(i) for i in ids])
    heard = torch.tensor([len(p) for p in pieces])
    return F.ctc_loss(padded, classes, heard, lengths, reduction="sum", zero_infinity=True) / lengths.sum()


def validate(
    tower: SpeechTower, ruler: Ruler, tokenizer: Tokenizer, orders: Sequence[Clip], digits: Sequence[Clip]
) -> dict[str, float]:
    """Digits right (best path is that digit) and slots whose words stand in the best path of unseen people's orders."""
    figures: dict[str, float] = {}
    rng = random.Random(0)
    digit_ids = spoken_ids(tokenizer, grammar.DIGIT_WORDS)

    def heard(clips: Sequence[Clip]) -> list[list[int]]:
        tape = lay_tape(tower.config, [Utterance(waveform(c), []) for c in clips], rng)
        with torch.inference_mode():
            log_probabilities = ruler.log_probabilities(hear(tower, tape.samples))
        return [ruler.greedy(log_probabilities[s]) for s in tape.spans]

    if digits:
        right = [said == [digit_ids[c.digit]] for c, said in zip(digits, heard(digits), strict=True)]
        figures["digits"] = sum(right) / len(right)
    if orders:
        hits: dict[str, list[bool]] = {}
        for clip, said in zip(orders, heard(orders), strict=True):
            for slot, value in clip.slots.items():
                want = spoken_ids(tokenizer, value.split())
                found = any(said[i : i + len(want)] == want for i in range(len(said)))
                hits.setdefault(slot, []).append(found)
        figures |= {slot: sum(h) / len(h) for slot, h in sorted(hits.items())}
        every = [h for found in hits.values() for h in found]
        figures["slots"] = sum(every) / len(every)
    return figures


def train_alignment(
    stage: AlignmentStage,
    tower: SpeechTower,
    embeddings: torch.Tensor,
    tokenizer: Tokenizer,
    data: SpeechData,
    validation: tuple[Sequence[Clip], Sequence[Clip]],
    run: Run,
) -> None:
    """Train `tower` through all phases, resuming where the run's folder says."""
    ruler = Ruler(tokenizer, embeddings)
    built = optimizers(dict(tower.named_parameters()), stage.lr, stage.weight_decay)
    done = run.resume(tower, built)
    total = sum(p.steps for p in stage.phases)
    step, losses, seconds, started = 0, [], 0.0, time.monotonic()
    for phase in stage.phases:
        labels: Sequence[tuple[str, ...]] = []
        if phase.human and step + phase.steps > done:
            labels = self_label(tower, ruler, tokenizer, data.human_orders)
        for _ in range(phase.steps):
            step += 1
            if step <= done:
                continue
            set_learning_rate(built, learning_rate(step - 1, total, stage.lr, stage.warmup, stage.decay))
            tape, noise_rng = make_tape(stage, phase, step, data, labels, tokenizer, tower.config)
            heard = ruler.log_probabilities(hear(tower, tape.samples, noise_rng, phase.strength, phase.formants))
            loss = ctc(ruler, heard, tape)
            guessed = phase.flat_start * flat_start(ruler, heard, tape) if phase.flat_start else 0.0
            (loss + guessed).backward()
            torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            for optimizer in built:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            seconds += len(tape.samples) / SAMPLING_RATE
            if step % stage.log_every == 0:
                row = {"stage": stage.name, "phase": phase.name, "step": step, "loss": sum(losses) / len(losses)}
                if step % (4 * stage.log_every) == 0:
                    row |= validate(tower, ruler, tokenizer, *validation)
                run.log(row | {"audio_seconds_per_second": seconds / (time.monotonic() - started)})
                losses, seconds, started = [], 0.0, time.monotonic()
            run.save_if_due(step, tower, built)
    run.finish(tower)
