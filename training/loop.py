"""The loop of one stage: steps, losses, validation, saving. What is trained on and with which settings comes in.

It knows batches and an optimizer, no files of data and no recipe but its own stage.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from speech_xl.schedule import Ratio
from training.batch import name_of
from training.network import named_parameters, parameter_groups
from training.packing import shares_of
from training.recipe import RecipeError, Stage
from training.samples import Order, Sample, Samples
from training.sharded_state import load_state, save_shards
from training.sharding import shard, sharding_settings
from training.state import StageFolder
from training.sums import Sums, add, added


class Batching(Protocol):
    """What a kind of stage makes of samples: batches of its own, and their losses."""

    @property
    def ratios(self) -> Sequence[Ratio]:
        """What is validated one after another."""

    def shared(self, samples: Sequence[Any], numbers: Any, step: int) -> Any:
        """What all passes of a step have in common, made of all its samples; `numbers` are their places in the run."""

    def training(self, samples: Sequence[Any], numbers: Any, step: int, progress: float, shared: Any) -> list[Any]:
        """The passes of some of a step's samples."""

    def validation(self, samples: Sequence[Any], numbers: Any, ratio: Ratio, shared: Any) -> Any:
        """One pass of samples that are not trained on."""

    def losses(self, network: nn.Module, batch: Any, device: torch.device) -> tuple[torch.Tensor, Sums]:
        """The losses of a pass, float32, and figures to sum."""


class Loop:
    """Trains the tensors `trained` of `network` through one stage. Every process runs one, on its share of each batch."""

    def __init__(
        self,
        network: nn.Module,
        trained: dict[str, nn.Parameter],
        stage: Stage,
        batcher: Batching,
        seed: int,
        folder: StageFolder,
        accelerator: Accelerator,
    ):
        self.stage, self.batcher, self.folder, self.accelerator = stage, batcher, folder, accelerator
        self.trained = trained
        self.seed = seed
        passes = accelerator.num_processes * stage.accumulation
        settings = sharding_settings()
        self.is_sharded = settings is not None
        if stage.batch < passes:
            raise RecipeError(
                f"Stage {stage.name!r} has a batch of {stage.batch} for {passes} passes; raise it to that or more."
            )
        if settings is not None:
            computed = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
            shard(network, settings, accelerator.device, computed)
            network.uses_everything = True
            self.trained = trained = named_parameters(network, trained)
        optimizer = torch.optim.AdamW(
            parameter_groups(trained, stage), betas=(0.9, 0.98), weight_decay=stage.weight_decay
        )
        self.network, self.optimizer = network, optimizer
        if not self.is_sharded:
            self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.step, self.elapsed = 0, 0.0

    @property
    def progress(self) -> float:
        """Share of the stage that is done, 0 to 1: by steps, or by time where that is further."""
        by_time = self.elapsed / (60 * self.stage.minutes) if self.stage.minutes else 0.0
        return min(1.0, max(self.step / self.stage.steps, by_time))

    def run(self, samples: Samples, held: Samples | None) -> bool:
        """Train from where the folder's state is to the stage's end; False: stopped before, with the state saved."""
        self._resume()
        stage, main = self.stage, self.accelerator.is_main_process
        order = Order(samples.sizes, stage.batch, self.seed)
        sums: Sums = {}
        speech_tokens, since = 0, time.monotonic()
        with (
            stop_signals() as stopped,
            tqdm(total=stage.steps, initial=self.step, unit="step", disable=not main) as bar,
        ):
            while self.progress < 1:
                began = time.monotonic()
                chosen = order.batch(self.step)
                numbers = self.step * stage.batch + np.arange(len(chosen))
                speech_tokens += self._train([samples[i] for i in chosen.tolist()], numbers, sums)
                self.step += 1
                self.elapsed = self._agree(self.elapsed + time.monotonic() - began)
                bar.update()
                is_last = self.progress >= 1
                if self.step % stage.log_every == 0 or is_last:
                    speed = speech_tokens / (time.monotonic() - since)
                    self._report(self._summed(sums), speed, bar)
                    speech_tokens, since = 0, time.monotonic()
                    sums.clear()
                if held and (self.step % stage.validate_every == 0 or is_last):
                    self._validate(held, bar)
                    since = time.monotonic()
                stop = bool(self._agree(float(stopped())))
                if stop or is_last or self._agree(float(self.folder.is_due)):
                    self._save()
                if stop and not is_last:
                    return False
        return True

    def _train(self, samples: list[Sample], numbers: np.ndarray, sums: Sums) -> int:
        """One optimizer step on this process's share of a batch; returns the share's speech tokens."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        shared = self.batcher.shared(samples, numbers, self.step)
        share = shares_of([sample.size for sample in samples], world, self.stage)[rank]
        batches = self.batcher.training([samples[i] for i in share], numbers[share], self.step, self.progress, shared)
        # The mean over all tokens of all processes: each pass counts by its tokens.
        total = self._total(sum(len(b.targets) for b in batches))
        factor = self.stage.learning_rate(self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.network.train()
        for i in range(self._most(len(batches)) if self.is_sharded else len(batches)):
            # A sharded network runs when all processes run it: who has done its part runs it again for the others.
            is_own = i < len(batches)
            waits = not self.is_sharded and i < len(batches) - 1
            with self.accelerator.no_sync(self.network) if waits else nullcontext():
                with self.accelerator.autocast():
                    losses, figures = self.batcher.losses(self.network, batches[i * is_own], self.accelerator.device)
                if is_own:
                    add(sums, figures)
                loss = losses.sum() * (is_own * world / total)
                # All intervals are raw and SST parameters train alone: nothing to learn, but other processes wait.
                if not loss.requires_grad:
                    loss = loss + 0.0 * next(iter(self.trained.values())).sum()
                self.accelerator.backward(loss)
        self._clip(self._total(sum(b.ssts for b in batches)) > 0 if self.is_sharded else True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sum(b.speech_tokens for b in batches)

    def _clip(self, has_ssts: bool) -> None:
        if not self.is_sharded:
            self.accelerator.clip_grad_norm_(list(self.trained.values()), self.stage.clip)
            return
        for name, parameter in self.trained.items():
            if "sst_" in name and not has_ssts:  # zero for taking part, where one process would have had none
                parameter.grad = None
        nn.utils.clip_grad_norm_(list(self.trained.values()), self.stage.clip)

    @torch.no_grad()
    def _validate(self, held: Samples, bar: tqdm) -> None:
        """Share of right tokens, the answer so far given, at every ratio of the stage."""
        network = self.accelerator.unwrap_model(self.network)  # shares of the validation may differ in number
        network.eval()
        sums: Sums = {}
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        samples = [held[i] for i in range(min(len(held), self.stage.validation_recordings))]
        for ratio in self.batcher.ratios:
            for part in np.split(np.arange(len(samples)), range(self.stage.batch, len(samples), self.stage.batch)):
                shared = self.batcher.shared([samples[i] for i in part], part, 0)
                own = part[rank::world].tolist()
                if own or self.is_sharded:
                    chosen = own or part[:1].tolist()
                    batch = self.batcher.validation([samples[i] for i in chosen], chosen, ratio, shared)
                    with self.accelerator.autocast():
                        figures = self.batcher.losses(network, batch, self.accelerator.device)[1]
                    add(sums, figures if own else {})
        summed = self._summed(sums)
        if self.accelerator.is_main_process:
            shares = {group: figures[1] / figures[2] for group, figures in summed.items()}
            self.folder.log(self.step, {f"validation/{kind}/{ratio}": v for (kind, ratio), v in shares.items()})
            shown = [
                " ".join(
                    [
                        kind,
                        *(
                            f"{r} {shares[kind, r]:.3f}"
                            for r in map(name_of, self.batcher.ratios)
                            if (kind, r) in shares
                        ),
                    ]
                )
                for kind in dict.fromkeys(kind for kind, _ in shares)
            ]
            bar.write(f"step {self.step}, right tokens: " + "; ".join(shown))

    def _report(self, summed: Sums, speed: float, bar: tqdm) -> None:
        if not self.accelerator.is_main_process:
            return
        metrics = {f"loss/{kind}/{ratio}": s[0] / s[2] for (kind, ratio), s in summed.items()}
        everything: Any = sum(summed.values())
        metrics |= {
            "loss": everything[0] / everything[2],
            "speech_tokens_per_second": speed * self.accelerator.num_processes,
        }
        metrics |= {f"learning_rate/{g['name']}": g["lr"] for g in self.optimizer.param_groups}
        self.folder.log(self.step, metrics)
        bar.set_postfix(loss=f"{metrics['loss']:.3f}")

    def _summed(self, sums: Sums) -> Sums:
        """`sums` of all processes together."""
        if self.accelerator.num_processes == 1:
            return added([sums])
        gathered: list[Sums] = [{}] * self.accelerator.num_processes
        torch.distributed.all_gather_object(gathered, sums)
        return added(gathered)

    def _total(self, number: float) -> float:
        """The sum of every process's number."""
        if self.accelerator.num_processes == 1:
            return number
        return float(self.accelerator.reduce(torch.tensor(float(number), device=self.accelerator.device), "sum"))

    def _most(self, number: int) -> int:
        """The largest of every process's numbers."""
        largest = torch.tensor(number, device=self.accelerator.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def _agree(self, number: float) -> float:
        """The mean of every process's number, so that all of them decide alike."""
        return self._total(number) / self.accelerator.num_processes

    def _save(self) -> None:
        if self.is_sharded:
            save_shards(self.folder, self.step, self.elapsed, self.trained, self.optimizer)
        elif self.accelerator.is_main_process:
            self.folder.save(
                {
                    "step": self.step,
                    "elapsed": self.elapsed,
                    "parameters": {n: p.detach() for n, p in self.trained.items()},
                    "optimizer": self.optimizer.state_dict(),
                    "rng": torch.get_rng_state(),
                }
            )
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Take up a state that this or another number of processes left."""
        found = load_state(self.folder, self.trained, self.optimizer)
        if found is not None:
            self.step, self.elapsed = found
        if self.accelerator.is_main_process:
            self.folder.forget_after(self.step)


@contextmanager
def stop_signals() -> Iterator:
    """Ctrl-C and SIGTERM end the loop behind its step, once; a second one ends it at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
