"""What a run needs of a GPU's memory, computed from the recipe and config.json alone: no weights, no data, no GPU.

It counts tensors: weights, gradients, the optimizer's moments, and what a pass keeps for its backward pass. Memory that an
allocator or a kernel takes beside them is not known here, so leave a tenth free.

Letters: R rows of a pass, D width, r rank of adapters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from speech_xl.config import DecoderConfig, ModelConfig
from speech_xl.schedule import Ratio, format_bytes, memory_slots
from speech_xl.summarizers import interval_of
from training.batch import POOL_CHUNK
from training.losses import rows_at_once
from training.network import Network, choose_trained
from training.recipe import Recipe, Stage

FLOAT, HALF = 4, 2  # bytes
MOMENTS = 2  # AdamW's
QUESTION, ANSWER = 48, 16  # text rows of a question with its answer, and of the answer: nothing is known of the data
PREFIX = 16  # rows


@dataclass(frozen=True)
class Rows:
    """The rows of a pass: recordings one after another."""

    speech: int
    ssts: int
    text: int
    answers: int  # of the text
    prefix: int = PREFIX

    @property
    def total(self) -> int:
        """R."""
        return self.prefix + self.speech + self.ssts + self.text


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    gpus: int
    is_sharded: bool
    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int  # what exists for a moment: gathered layers, logits, a layer's inside while it is computed again

    @property
    def total(self) -> int:
        """All of it at the same time."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


def plan(recipe: Recipe, config: ModelConfig, gpus: Sequence[int], is_mixed: bool = True) -> dict[str, list[Memory]]:
    """The memory of every stage on so many GPUs: whole on each, and in shares."""
    found: dict[str, list[Memory]] = {}
    for number, stage in enumerate(recipe.stages):
        sst = recipe.sst if recipe.sst is not None and number == 0 else config.sst
        config = ModelConfig(**{**vars(config), "sst": sst})
        network, trained = meta_network(config, stage)
        found[stage.name] = [
            stage_memory(stage, config, network, trained, count, is_sharded, is_mixed)
            for count in gpus
            for is_sharded in ((False, True) if count > 1 else (False,))
        ]
    return found


def meta_network(config: ModelConfig, stage: Stage) -> tuple[Network, dict[str, nn.Parameter]]:
    """A stage's network and what it trains, shapes only."""
    with torch.device("meta"):
        network = Network(config)
        return network, choose_trained(network, stage, 0)


def stage_memory(
    stage: Stage,
    config: ModelConfig,
    network: Network,
    trained: dict[str, nn.Parameter],
    gpus: int,
    is_sharded: bool,
    is_mixed: bool,
) -> Memory:
    """What one stage needs of each of `gpus` GPUs. network and trained are a meta_network's."""

    def held(parameters: Sequence[nn.Parameter]) -> int:
        """Numbers on one GPU: torch shards by the first dimension."""
        if not is_sharded:
            return sum(p.numel() for p in parameters)
        return sum(-(-p.shape[0] // gpus) * (p.numel() // p.shape[0]) for p in parameters)

    rows = rows_of(stage, config, gpus)
    layer = kept_by_layer(config.decoder, set(trained), stage, rows, is_mixed)
    layers = config.decoder.num_hidden_layers
    boundaries = 4 * rows.total * config.decoder.head_dim * FLOAT + text_bytes(config.decoder, rows)
    kept = layers * (rows.total * config.decoder.hidden_size * FLOAT if stage.gradient_checkpointing else layer)
    products = HALF if is_mixed else FLOAT
    logits = (
        min(rows.text, rows_at_once(config.decoder.vocab_size)) * config.decoder.vocab_size * (2 * FLOAT + products)
    )
    weights = [p.numel() for p in network.decoder.layers[0].parameters()]
    casts = sum(weights) * HALF if is_mixed else 0  # products in bfloat16 need the weights so
    working = max(logits, (layer if stage.gradient_checkpointing else 0) + casts)
    if is_mixed and not is_sharded and not stage.gradient_checkpointing:
        kept += layers * casts
    if is_sharded:  # the next layer is gathered while one computes; what is in no layer stays gathered
        outside = [p for n, p in network.named_parameters() if ".layers." not in n]
        working += 2 * sum(weights) * FLOAT + sum(p.numel() for p in outside) * FLOAT
        working += sum(p.numel() for n, p in trained.items() if ".layers.0." in n) * FLOAT
    return Memory(
        gpus,
        is_sharded,
        held(list(network.parameters())) * FLOAT,
        held(list(trained.values())) * FLOAT,
        held(list(trained.values())) * MOMENTS * FLOAT,
        kept + boundaries,
        working,
    )


def rows_of(stage: Stage, config: ModelConfig, gpus: int) -> Rows:
    """The rows of a process's largest pass: recordings of `max_tokens`, the most SSTs that the stage's ratios make, every
    question and transcript that it may ask. A stage that packs is held to its `pack`.
    """
    recordings = -(-stage.batch // (gpus * stage.accumulation))
    n, interval = stage.max_tokens, interval_of(config)
    ratios: list[Ratio] = [ratio for ratio in stage.ratios if ratio is not None]
    ssts = max((memory_slots(n, interval, ratio) for ratio in ratios), default=0)
    said = round(n * min(1.0, stage.transcripts))
    text, answers = stage.questions * QUESTION + said, stage.questions * ANSWER + said
    rows = Rows(n * recordings, ssts * recordings, text * recordings, answers * recordings)
    if stage.pack is None or rows.total <= stage.pack:
        return rows
    # One recording may be longer than a pack.
    share = max(1.0, (stage.pack - PREFIX) / (n + ssts + text)) / recordings
    return Rows(*(int(part * share) for part in (rows.speech, rows.ssts, rows.text, rows.answers)))


def kept_by_layer(decoder: DecoderConfig, trained: set[str], stage: Stage, rows: Rows, is_mixed: bool) -> int:
    """Bytes that one decoder layer keeps for its backward pass, weights apart, when its inside is kept.

    A product keeps its input only where its own weight, or an adapter on it, trains.
    """

    def learns(projection: str) -> bool:
        return any(re.search(rf"layers\.0\.(self_attn|mlp)\.{projection}\.(weight|lora_A)", name) for name in trained)

    def rank(projection: str) -> int:
        named = f"decoder.layers.0.{'mlp' if projection in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{projection}"
        return stage.lora.rank if stage.lora is not None and re.fullmatch(stage.lora.targets, named) else 0

    width, inner = decoder.hidden_size, decoder.intermediate_size
    queries, keys = decoder.num_attention_heads * decoder.head_dim, decoder.num_key_value_heads * decoder.head_dim
    r, plain = rows.total, rows.total - rows.ssts
    products = HALF if is_mixed else FLOAT
    into = {
        "q_proj": width,
        "k_proj": width,
        "v_proj": width,
        "o_proj": queries,
        "gate_proj": width,
        "up_proj": width,
        "down_proj": inner,
    }
    kept = 2 * r * width * FLOAT + 2 * r * FLOAT  # what both norms read, and their scales
    for group in (
        ("q_proj", "k_proj", "v_proj"),
        ("gate_proj", "up_proj"),
    ):  # one input, but one bfloat16 copy for each
        learning = [name for name in group if learns(name)]
        kept += r * width * (HALF * len(learning) if is_mixed else FLOAT * bool(learning))
    if any("sst_q_proj" in name for name in trained) and rows.ssts:
        kept += 3 * rows.ssts * width * HALF if is_mixed else r * width * FLOAT * (not learns("[qkv]_proj"))
    if any("norm.weight" in name for name in trained):
        kept += 2 * r * width * FLOAT
    kept += r * sum(into[name] * products for name in ("o_proj", "down_proj") if learns(name))
    kept += sum(r * rank(name) * products for name in into)
    kept += (
        r * (2 * queries + 2 * keys) * products + r * decoder.num_attention_heads * FLOAT
    )  # attention, its normalisers
    kept += 3 * r * inner * products  # gate, its SiLU, and up
    if any("sst_pool" in name for name in trained) and rows.ssts:
        kept += 2 * plain * keys * products  # what SSTs pool, before rotation, and with which weights
        span = min(rows.speech, POOL_CHUNK * -(-rows.speech // rows.ssts))
        kept += 2 * rows.ssts * decoder.num_key_value_heads * span * products
    return kept


def text_bytes(decoder: DecoderConfig, rows: Rows) -> int:
    """What the loss keeps: the answers' rows, and their probabilities where all fit at once."""
    kept = rows.answers * decoder.hidden_size * FLOAT
    if rows.answers <= rows_at_once(decoder.vocab_size):
        kept += rows.answers * decoder.vocab_size * FLOAT
    return kept


def plan_lines(found: dict[str, list[Memory]], gpu_memory: int) -> list[str]:
    """The plan as a table with a verdict in each line."""
    lines = [
        f"{'stage':<16}{'GPUs':>5}  {'how':<8}{'weights':>10}{'gradients':>11}{'optimizer':>11}{'activations':>13}"
        f"{'working':>10}{'total':>11}  of {format_bytes(gpu_memory)}"
    ]
    for name, memories in found.items():
        for m in memories:
            numbers = (m.weights, m.gradients, m.optimizer, m.activations, m.working, m.total)
            sizes = [f"{n / 2**30:.2f}GiB" for n in numbers]
            verdict = "fits" if m.total <= 0.9 * gpu_memory else "tight" if m.total <= gpu_memory else "too much"
            widths = (10, 11, 11, 13, 10, 11)
            lines.append(
                f"{name:<16}{m.gpus:>5}  {'sharded' if m.is_sharded else 'whole':<8}"
                + "".join(f"{size:>{width}}" for size, width in zip(sizes, widths, strict=True))
                + f"  {verdict}"
            )
    return lines
