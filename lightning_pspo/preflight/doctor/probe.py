"""A few real rollouts with their updates, measured: on a module that is thrown away, in a directory of its own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Trainer

from lightning_pspo.checkpoints.save import save_atomically
from lightning_pspo.datamodule import EncodedProblem, EvaluationLoader, MathDataModule, RolloutLoader
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.trust_region import divergence
from lightning_pspo.preflight.doctor.memory import Memory, children_mib, now_mib
from lightning_pspo.preflight.doctor.planning import Step, next_size
from lightning_pspo.training.passes import StepOutput
from lightning_pspo.types import PromptBatch, Sample

_LARGEST_SAVED = 2 * 2**30
_DISK_BYTES_PER_S = 300e6
_SHORTEST = 64  # batches of the probe's epoch, at least: it ends by itself when it has seen enough


@dataclass
class Observed:
    """What the probe has seen.

    Attributes:
        steps: Its rollouts.
        samples: All completions, in groups of neighbours.
        rewards: One list of ``group_size`` for each group.
        terms: Name -> values of all completions.
        ends: End-of-sequence id -> completions that ended with it.
        strays: Other id that ends turns in some model -> completions that hold it.
        divergences: KL between the policy before and after each rollout's updates, in nats a token.
        ratios: Smallest and largest ratio.
        norms: Gradient norm of each update that had a gradient.
        rates: Learning rate of each update.
        validated: Problems, seconds and memory of one validation batch.
        checkpoint: Bytes, seconds and memory of one checkpoint.
        start_s: Seconds from the process's beginning to the first rollout, less what only the doctor does.
        end_s: Seconds from the last rollout to the end, without the validation.
        other_mib: Peaks outside of rollouts and updates.
        children_mib: Memory of grading processes.
        failure: What broke the probe off; empty if nothing did.
    """

    steps: list[Step] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    ends: Counter[int] = field(default_factory=Counter)
    strays: Counter[int] = field(default_factory=Counter)
    divergences: list[float] = field(default_factory=list)
    ratios: tuple[float, float] = (1.0, 1.0)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    validated: tuple[int, float, float] | None = None
    checkpoint: tuple[float, float, float] | None = None
    start_s: float = 0.0
    end_s: float = 0.0
    other_mib: list[float] = field(default_factory=list)
    children_mib: float = 0.0
    failure: str = ""


class _Prompts:
    """Rollouts of whatever size is wanted next: the prompts, and the noise, are those of the run's beginning."""

    def __init__(self, rows: Sequence[EncodedProblem], data: MathDataModule, pad_id: int, watch: Watch) -> None:
        self.rows, self.pad_id, self.watch = rows, pad_id, watch
        self.prompts_per_rollout, self.seed = data.prompts_per_rollout, data.seed
        self.length = max(data.num_rollouts, _SHORTEST)
        self.position = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[PromptBatch]:
        while self.watch.next:
            yield self.draw()

    def draw(self) -> PromptBatch:
        """Return the next prompts, also as a replacement of groups without signal."""
        size = max(1, self.watch.next)
        loader = RolloutLoader(self.rows, size, len(self), self.seed, 0, 1, self.pad_id)
        stretch = -(-self.position // size)
        self.position = (stretch + 1) * size
        return loader.batch(stretch)


class _Validation:
    """One batch of validation problems, as many as the time allows."""

    def __init__(self, name: str, rows: Sequence[EncodedProblem], data: MathDataModule, pad: int, watch: Watch) -> None:
        self.name, self.rows, self.data, self.pad_id, self.watch = name, rows, data, pad, watch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[PromptBatch]:
        count = self.watch.affordable(min(self.data.eval_batch_size, len(self.rows)))
        yield from EvaluationLoader(self.name, self.rows[:count], count, 0, 1, self.pad_id)


class ProbeData(pl.LightningDataModule):
    """The prompts of the probe.

    Args:
        data: The run's.
        rows: Source -> its encoded problems.
        watch: Decides on sizes.
    """

    def __init__(self, data: MathDataModule, rows: Mapping[str, Sequence[EncodedProblem]], watch: Watch) -> None:
        super().__init__()
        self.data, self.rows, self.watch = data, rows, watch
        tokenizer = data.tokenizer
        self.pad_id = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def train_dataloader(self) -> _Prompts:
        """Return the rollouts."""
        return _Prompts(self.rows["train"], self.data, self.pad_id, self.watch)

    def val_dataloader(self) -> list[_Validation]:
        """Return the first validation source."""
        named = [key for key, rows in self.rows.items() if key.startswith("val.") and rows][:1]
        return [_Validation(key[4:], self.rows[key], self.data, self.pad_id, self.watch) for key in named]

    def unverified(self) -> list[Any]:
        """Return nothing: the doctor says so itself."""
        return []


class Watch(pl.Callback):
    """Measures the probe, and ends it.

    Args:
        whole: Prompts of a rollout of one rank of the run.
        sample: Prompts that the sample should have.
        deadline: Of ``time.monotonic``: when the rollouts should be over.
        stray_ids: Ids to look for inside of completions.
        saves: Whether the run writes checkpoints.
        begun: Of ``time.monotonic``: when the process began, moved by what only the doctor did.
    """

    def __init__(
        self, whole: int, sample: int, deadline: float, stray_ids: Sequence[int], saves: bool, begun: float
    ) -> None:
        self.whole, self.sample, self.deadline, self.saves = whole, sample, deadline, saves
        self.stray_ids, self.begun = list(stray_ids), begun
        self.seen = Observed()
        self.next = next_size([], whole, sample, 1.0)
        self.memory = Memory("cpu")
        self._peaks: dict[str, float] = {}
        self._phase: str | None = None
        self._since = self._since_cpu = self._validating_since = 0.0

    # -- rollouts ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure."""
        assert isinstance(pl_module, PSPOModule)
        self.memory = Memory(pl_module.device.type)
        self.seen.other_mib.append(self.memory.since_last_mib())
        pl_module.phases.listeners.append(self._begins)
        self._since, self._since_cpu = time.monotonic(), time.process_time()
        self.seen.start_s = self._since - self.begun

    def _begins(self, phase: str | None) -> None:
        peak = self.memory.since_last_mib()
        name = self._phase or "rollout"
        self._peaks[name] = max(self._peaks.get(name, 0.0), peak)
        self._phase = phase

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the step was, and decide on the next."""
        output: StepOutput = outputs
        self._begins(None)
        rollout = output["rollout"]
        lengths = rollout.completions.completion_mask.sum(dim=1)
        needed = (rollout.advantages[:, 0] != 0.0) | pl_module.objective.needs_every_row  # type: ignore[operator,union-attr]
        prompts = rollout.prompts.prompt_mask.sum(dim=1).repeat_interleave(rollout.rewards.shape[1])
        now = time.monotonic()
        self.seen.steps.append(
            Step(
                len(rollout.rewards),
                int(lengths.sum()),
                now - self._since,
                dict(output["seconds"]),
                self._peaks,
                int((lengths + prompts)[needed].sum()),
                time.process_time() - self._since_cpu,
            )
        )
        self._keep(output, pl_module)
        self.seen.children_mib = max(self.seen.children_mib, children_mib())
        self._peaks, self._since, self._since_cpu = {}, time.monotonic(), time.process_time()
        self.next = next_size(self.seen.steps, self.whole, self.sample, self.deadline - self._since)
        trainer.should_stop = not self.next

    def _keep(self, output: StepOutput, pl_module: Any) -> None:
        seen, rollout = self.seen, output["rollout"]
        seen.samples += rollout.samples
        seen.rewards += rollout.rewards.tolist()
        for name, values in rollout.reward_terms.items():
            seen.terms.setdefault(name, []).extend(values.flatten().tolist())
        ids, mask = rollout.completions.completion_ids, rollout.completions.completion_mask
        last = ids.gather(1, (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
        seen.ends.update(last[~rollout.completions.truncated].tolist())
        for id_ in self.stray_ids:
            seen.strays[id_] += int(((ids == id_) & mask).any(dim=1).sum())
        for update in output["updates"]:
            if len(update.log_ratio) and float(update.grad_norm) > 0.0:
                seen.norms.append(float(update.grad_norm))
                low, high = seen.ratios
                ratios = update.log_ratio.exp()
                seen.ratios = min(low, float(ratios.min())), max(high, float(ratios.max()))
        total, tokens = divergence(output["updates"][-1].log_ratio).tolist()
        if tokens:
            seen.divergences.append(total / tokens)
        seen.rates.append(float(pl_module.optimizers().param_groups[0]["lr"]))

    # -- beside rollouts -----------------------------------------------------------------------------------------------

    def affordable(self, most: int) -> int:
        """Return how many validation problems to complete."""
        step = self.seen.steps[-1]
        each = max(step.seconds / step.prompts, 1e-6)
        return max(1, min(most, int(max(self.deadline + 5.0 - time.monotonic(), 3.0) / each)))

    def on_validation_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure the validation."""
        self._validating_since = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what the batch took."""
        seconds = time.monotonic() - self._validating_since
        self.seen.validated = len(batch), seconds, self.memory.since_last_mib()

    def on_train_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        """Save once, or work out what that would take."""
        if not self.saves:
            return
        size = float(_bytes(pl_module.state_dict()) + sum(_bytes(o.state) for o in trainer.optimizers))
        place = Path(trainer.default_root_dir) / "probe.ckpt"
        if size <= _LARGEST_SAVED:
            began = time.monotonic()
            self.memory.since_last_mib()
            save_atomically(trainer, place)
            self.seen.checkpoint = (
                float(place.stat().st_size),
                time.monotonic() - began,
                self.memory.since_last_mib(),
            )
            place.unlink()
        else:  # Lightning makes the file in memory first
            copy = 0.0 if self.memory.on_gpu else 1.06 * size / 2**20
            self.seen.checkpoint = size, size / _DISK_BYTES_PER_S, now_mib(pl_module.device.type) + copy


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_bytes(one) for one in value.values())
    return sum(_bytes(one) for one in value) if isinstance(value, list | tuple) else 0


def run(
    trainer: Trainer, module: PSPOModule, data: ProbeData, watch: Watch, refusal: Callable[[Exception], str]
) -> Observed:
    """Fit until the watch has seen enough.

    Args:
        trainer: On one device, with ``watch`` among its callbacks and a directory that is thrown away.
        module: Its weights are changed in memory only.
        data: The probe's prompts.
        watch: Measures.
        refusal: Says in one line what an error means.
    """
    try:
        trainer.fit(module, datamodule=data)
    except Exception as error:  # whatever the user's model, reward or callbacks raise is the finding
        watch.seen.failure = refusal(error)
        if not watch.seen.steps:
            return watch.seen
    validation = watch.seen.validated[1] if watch.seen.validated else 0.0
    watch.seen.end_s = max(0.0, time.monotonic() - watch._since - validation)
    watch.seen.other_mib.append(watch.memory.since_last_mib())
    return watch.seen
