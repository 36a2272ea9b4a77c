"""How many answers of a trained arm are right, at every ratio.

An answer is right if every token of it is the likeliest one behind those before it, its end included: then decoding
writes just that answer. It uses the trainer's own masked pass, which equals listening.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from speech_xl.config_file import load_config
from speech_xl.prompt import Prompt
from speech_xl.schedule import Ratio
from training.batch import Batch, Batcher, name_of
from training.data import scan_recordings
from training.hearing import Hearing
from training.network import load_network
from training.recipe import Lesson, Stage
from training.samples import index_samples

Counts = dict[tuple[str, str], tuple[int, int]]  # (kind of question, ratio) -> (right, of how many)
MOST = 1000  # questions of a recording: all of them


def judge(model: Path, data: Path, ratios: Sequence[Ratio], cache: Path, batch: int = 16) -> Counts:
    """Right answers of the checkpoint `model` about the recordings of `data`; sounds are heard into `cache`."""
    stage = Stage(
        "judging", "summarization", 1, batch=batch, max_tokens=1024, questions=MOST, lessons=(Lesson(tuple(ratios)),)
    )
    config = load_config(model)
    prompt = Prompt.load(model, config)
    network, _ = load_network(model, config, None, prompt.end_id)
    accelerator = Accelerator()  # as the trainer has set it up
    network.to(accelerator.device).eval()
    hearing = Hearing(stage, model, config, prompt, cache, accelerator)
    samples, _ = index_samples([data], scan_recordings([data]), hearing.sample, stage.max_tokens)
    batcher = Batcher(prompt, config, stage, seed=0)
    counts: Counts = {}
    for ratio in ratios:
        for first in range(0, len(samples), batch):
            part = range(first, min(first + batch, len(samples)))
            asked = batcher.validation([samples[i] for i in part], part, ratio, None)
            for kind, right in right_answers(batcher, network, asked, accelerator.device):
                before = counts.get((kind, name_of(ratio)), (0, 0))
                counts[kind, name_of(ratio)] = before[0] + right, before[1] + 1
    return counts


@torch.inference_mode()
def right_answers(
    batcher: Batcher, network: torch.nn.Module, batch: Batch, device: torch.device
) -> list[tuple[str, bool]]:
    """(kind, whether it is right) of each answer of a batch: each is counted as a group of its own."""
    ends = batch.targets == batcher.prompt.end_id
    answer_of = np.cumsum(ends) - ends  # which answer a token belongs to
    kinds = [batch.groups[group][0] for group in batch.group_of[ends]]
    alone = dataclasses.replace(batch, group_of=answer_of, groups=tuple((str(i), "") for i in range(len(kinds))))
    _, figures = batcher.losses(network, alone, device)
    found = (figures[group] for group in alone.groups)
    return [(kind, bool(right == tokens)) for kind, (_, right, tokens) in zip(kinds, found, strict=True)]
