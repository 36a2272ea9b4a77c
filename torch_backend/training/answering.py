"""Stages 2 and 3: the decoder learns to transcribe, answer and summarize on order-desk recordings.

Whole recordings run in one masked pass with many questions each, every question in its own block. Raw
ratios train question answering; a set of ratios, widened from phase to phase, trains the SSTs.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from speech_xl.schedule import Ratio
from torch_backend.decoder import Decoder, rotate
from torch_backend.training.desk import ELSEWHERE, UNNUMBERED, Batch, ClipPool, build_sample, collate
from torch_backend.training.state import Run, learning_rate, optimizers, set_learning_rate


@dataclass(frozen=True)
class Phase:
    """One step of the curriculum. Ranges are [lowest, highest]."""

    name: str
    steps: int
    batch: int
    numbered: tuple[int, int]
    plain: tuple[int, int] = (0, 0)
    questions: int = 8  # per recording
    transcripts: float = 0.2  # share of questions that ask for the words
    ratios: tuple[Ratio, ...] = (None,)
    longest_skip: int = 0  # memory slots pretended between intervals
    thin: float = 0.0  # up to this share of a recording's blank tokens is left out: more orders for the same work
    total_orders: int = 0  # if set, recordings of every length in `numbered` come in turn, each step with about so
    # many orders, and `batch` counts recordings of the shortest length only
    plain_share: float = 0.0  # with total_orders: up to this share of a recording's orders have no number
    uniform: float = 0.0  # share of recordings that keep one ratio throughout, as a user's recordings do


@dataclass(frozen=True)
class AnsweringStage:
    name: str
    phases: tuple[Phase, ...]
    lr: float
    seed: int = 1
    warmup: int = 50
    decay: float = 0.3
    weight_decay: float = 0.01
    clips: str = "encoded"  # "pseudo", or the encoding of real clips by the trained encoder
    binding: float = 0.5  # weight of the binding head's loss
    evidence: float = 0.3  # weight of the evidence loss
    recall: float = 0.3  # weight of the recall loss
    human: float = 0.6  # share of encoded clips that people speak
    initialise_sst: bool = False
    log_every: int = 25


class Binding(nn.Module):
    """A training-time head: which announced number is this row about?

    Answering needs every word of an order, and the question about it, to know the number, in the same terms.
    Left alone, that binding is found late and all at once; asked for at every speech, SST and answer row of a
    middle layer by one shared head, it is found in minutes.
    """

    def __init__(self, width: int, layer: int):
        super().__init__()
        self.layer = layer
        self.digits = nn.Linear(width, 22)  # tens and ones, each 0..9 or "no number"
        nn.init.zeros_(self.digits.weight)
        nn.init.zeros_(self.digits.bias)

    def loss(self, layer_outputs: list[torch.Tensor], batch: Batch) -> torch.Tensor:
        numbers = torch.from_numpy(batch.numbers)
        rows = layer_outputs[self.layer][numbers != ELSEWHERE]
        numbers = numbers[numbers != ELSEWHERE]
        unnumbered = numbers == UNNUMBERED
        targets = torch.stack([numbers // 10, numbers % 10], dim=1).masked_fill(unnumbered[:, None], 10)
        return F.cross_entropy(self.digits(rows).unflatten(1, (2, 11)).flatten(0, 1), targets.flatten())


def recall_loss(decoder: Decoder, layer: int, layer_outputs: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Cross-entropy of the words said under each SST, read from its row with the language-model head.

    What an SST does not carry at this layer no later layer can find in its keys and values; asked for directly,
    SSTs learn to carry words in tens of steps.
    """
    if not len(batch.under_ssts):
        return layer_outputs[0].new_zeros(())
    sample, row, word = torch.from_numpy(batch.under_ssts).T
    return F.cross_entropy(decoder.logits(layer_outputs[layer][sample, row]), word)


def evidence_loss(
    decoder: Decoder, layers: Sequence[int], layer_outputs: list[torch.Tensor], batch: Batch
) -> torch.Tensor:
    """-log of the attention that answer rows pay to the order asked about, in some layers, over all heads.

    It teaches retrieval directly, and it makes what the model attends to the evidence that a person is shown.
    """
    numbers = torch.from_numpy(batch.numbers)
    start = batch.sst_rows.stop
    sample, row = (torch.from_numpy(batch.targets) >= 0).nonzero(as_tuple=True)
    asked = numbers[sample, start + row]
    visible = torch.from_numpy(batch.mask)[sample, 0, start + row]  # (A, R)
    right = (numbers[sample] == asked[:, None]) & visible
    right[:, start:] = False  # the answer's own rows carry the number too
    answerable = right.any(1)
    total = layer_outputs[0].new_zeros(())
    for number in layers:
        layer = decoder.layers[number]
        attention = layer.self_attn
        h = layer.input_layernorm(layer_outputs[number - 1])
        key = attention.k_proj(h)
        if batch.ssts:
            ssts = attention.sst_k_proj(h[:, batch.sst_rows])
            key = torch.cat([key[:, : batch.sst_rows.start], ssts, key[:, start:]], dim=1)
        heads = (attention.q_proj(h), attention.heads), (key, attention.kv_heads)
        query, key = (x.unflatten(-1, (count, -1)).transpose(1, 2) for x, count in heads)
        query = rotate(query, decoder.rotation(torch.from_numpy(batch.query_positions)))[sample, :, start + row]
        key = rotate(key, decoder.rotation(torch.from_numpy(batch.key_positions)))
        key = key.repeat_interleave(attention.heads // attention.kv_heads, dim=1)
        scores = query.new_empty(len(sample), attention.heads, key.shape[2])
        for i in range(len(key)):  # by sample: answer rows differ in number from sample to sample
            scores[sample == i] = torch.einsum("ahd,hrd->ahr", query[sample == i], key[i])
        scores = scores / attention.head_dim**0.5
        weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1).mean(1)
        mass = (weights * right).sum(1)[answerable]
        total = total - (mass + 1e-4).log().mean() / len(layers)
    return total


def forward(
    decoder: Decoder, batch: Batch, layer_outputs: list[torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> logits of the rows that count (A, vocab), their targets (A,), their (sample, question) (A, 2)."""
    text = torch.from_numpy(batch.text_ids)
    b = len(text)
    prefix = decoder.embed_tokens(torch.from_numpy(batch.prefix_ids)).expand(b, -1, -1)
    speech = torch.from_numpy(batch.speech)
    ssts = decoder.sst_embedding.expand(b, batch.ssts, -1)
    x = torch.cat([prefix, speech, ssts, decoder.embed_tokens(text)], dim=1)
    x = decoder.whole(
        x,
        torch.from_numpy(batch.query_positions),
        torch.from_numpy(batch.key_positions),
        torch.from_numpy(batch.mask),
        batch.sst_rows,
        layer_outputs,
    )
    targets = torch.from_numpy(batch.targets)
    sample, row = (targets >= 0).nonzero(as_tuple=True)
    logits = decoder.logits(x[:, batch.sst_rows.stop :][sample, row])
    owner = torch.stack([sample, torch.from_numpy(batch.question_of_row)[sample, row]], dim=1)
    return logits, targets[sample, row], owner


def score(batch: Batch, logits: torch.Tensor, targets: torch.Tensor, owner: torch.Tensor) -> dict[str, list[float]]:
    """Whether each question's answer is right in every token (teacher-forced), by kind of question."""
    right = (logits.argmax(-1) == targets).tolist()
    answers: dict[tuple[int, int], bool] = defaultdict(lambda: True)
    for (sample, question), hit in zip(owner.tolist(), right, strict=True):
        answers[sample, question] &= hit
    by_kind: dict[str, list[float]] = defaultdict(list)
    for (sample, question), hit in answers.items():
        by_kind[batch.kinds[sample][question]].append(float(hit))
    return by_kind


def make_batch(
    stage: AnsweringStage, phase: Phase, step: int, pool: ClipPool, tokenizer: Tokenizer, interval: int
) -> Batch:
    """The batch of a step: a pure function of (seed, step)."""
    rng = random.Random(f"{stage.seed}/{stage.name}/{step}")
    numbered, plain, batch, questions = phase.numbered, phase.plain, phase.batch, phase.questions
    if phase.total_orders:
        low, high = numbered
        count = round(low * (high / low) ** rng.random())  # long ones are rarer: log-uniform
        batch = max(1, phase.total_orders // count)
        numbered = (count, count)
        if phase.plain_share:
            # Numbers have two digits, and one must be left that nobody has said.
            hay = max(count - 99, round(count * rng.uniform(0, phase.plain_share)))
            numbered, plain = (count - hay, count - hay), (hay, hay)
        questions = phase.batch * phase.questions // batch
    samples = [
        build_sample(
            rng,
            pool,
            rng.randint(*numbered),
            rng.randint(*plain),
            questions,
            phase.transcripts,
            rng.uniform(0, phase.thin),
        )
        for _ in range(batch)
    ]  # fmt: skip
    first = step * phase.batch
    return collate(samples, tokenizer, interval, phase.ratios, stage.seed, first, phase.longest_skip, phase.uniform)


def validate(
    stage: AnsweringStage, phase: Phase, decoder: Decoder, pool: ClipPool, tokenizer: Tokenizer, interval: int
) -> dict[str, float]:
    """Share of answers right about unseen people's orders: named slots and "not mentioned", by ratio."""
    figures = {}
    for ratio in phase.ratios:
        fixed = Phase("validation", 1, batch=6, numbered=(10, 10), questions=30, transcripts=0.0, ratios=(ratio,))
        batch = make_batch(stage, fixed, 0, pool, tokenizer, interval)
        with torch.inference_mode():
            by_kind = score(batch, *forward(decoder, batch))
        named = [h for kind, hits in by_kind.items() if kind != "absent" for h in hits]
        figures[f"validation_{ratio or 'raw'}"] = sum(named) / len(named)
    return figures


def train_answering(
    stage: AnsweringStage,
    decoder: Decoder,
    pool: ClipPool,
    tokenizer: Tokenizer,
    interval: int,
    run: Run,
    evidence_layers: Sequence[int],
    validation: ClipPool | None = None,
) -> None:
    """Train `decoder` through all phases, resuming where the run's folder says.

    `evidence_layers` (1 or higher): the layers whose attention the finished model shows as evidence.
    """
    decoder.embed_tokens.weight.requires_grad_(False)  # the ruler that alignment measured speech with
    binding = Binding(decoder.config.hidden_size, len(decoder.layers) // 2 - 1)
    trained = nn.ModuleDict({"decoder": decoder, "binding": binding})
    built = optimizers(dict(trained.named_parameters()), stage.lr, stage.weight_decay)
    done = run.resume(trained, built)
    total = sum(p.steps for p in stage.phases)
    step, tally, losses, bindings, evidence, recall = 0, defaultdict(list), [], [], [], []
    tokens, started = 0, time.monotonic()
    for phase in stage.phases:
        for _ in range(phase.steps):
            step += 1
            if step <= done:
                continue
            set_learning_rate(built, learning_rate(step - 1, total, stage.lr, stage.warmup, stage.decay))
            batch = make_batch(stage, phase, step, pool, tokenizer, interval)
            layer_outputs: list[torch.Tensor] = []
            logits, targets, owner = forward(decoder, batch, layer_outputs)
            loss = F.cross_entropy(logits, targets)
            bound = binding.loss(layer_outputs, batch)
            found = evidence_loss(decoder, evidence_layers, layer_outputs, batch)
            recalled = recall_loss(decoder, binding.layer, layer_outputs, batch)
            (loss + stage.binding * bound + stage.evidence * found + stage.recall * recalled).backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            for optimizer in built:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            bindings.append(bound.item())
            evidence.append(found.item())
            recall.append(recalled.item())
            tokens += batch.mask.shape[0] * batch.mask.shape[-1]
            for kind, hits in score(batch, logits, targets, owner).items():
                tally[kind] += hits
            if step % stage.log_every == 0:
                slots = [h for kind, hits in tally.items() if kind not in ("transcribe", "absent") for h in hits]
                row = {"stage": stage.name, "phase": phase.name, "step": step, "loss": sum(losses) / len(losses)}
                row |= {"binding": sum(bindings) / len(bindings), "evidence": sum(evidence) / len(evidence)}
                row |= {"recall": sum(recall) / len(recall)}
                row |= {"slots": sum(slots) / max(1, len(slots))}
                row |= {kind: sum(hits) / len(hits) for kind, hits in sorted(tally.items())}
                if validation is not None and step % (8 * stage.log_every) == 0:
                    row |= validate(stage, phase, decoder, validation, tokenizer, interval)
                run.log(row | {"rows_per_second": tokens / (time.monotonic() - started)})
                tally, losses, bindings, evidence, recall = defaultdict(list), [], [], [], []
                tokens, started = 0, time.monotonic()
            run.save_if_due(step, trained, built)
    run.finish(decoder)
