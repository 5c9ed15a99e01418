"""Measure a few real rollouts with their updates, with a module and a directory that are thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Trainer

from lightning_pspo.checkpoints.save import save_atomically
from lightning_pspo.data.loaders import EncodedProblem, EvaluationLoader, RolloutLoader
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.trust_region import divergence
from lightning_pspo.preflight.doctor.forecast import Step, next_size
from lightning_pspo.preflight.doctor.observed import MIB, Observed, PeakMemory, children_mib, now_mib
from lightning_pspo.training.passes import StepOutput
from lightning_pspo.types import PromptBatch

_LARGEST_SAVED = 2**29
_DISK_BYTES_PER_S = 300e6
_SHORTEST = 64  # least number of batches of the probe's epoch, which ends once it has measured enough


class _Prompts:
    """Rollouts of the size that ``watch`` asks for, with the prompts and noise of the run's first rollouts."""

    def __init__(self, rows: Sequence[EncodedProblem], data: MathDataModule, pad_id: int, watch: ProbeMonitor) -> None:
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
        """Return the next prompts, also to replace groups without signal."""
        size = max(1, self.watch.next)
        loader = RolloutLoader(
            rows=self.rows, prompts_per_rollout=size, num_rollouts=len(self), seed=self.seed, pad_id=self.pad_id
        )
        number = -(-self.position // size)
        self.position = (number + 1) * size
        return loader.batch(number)


class _Validation:
    """One batch of validation problems, as many as the time allows."""

    def __init__(
        self, name: str, rows: Sequence[EncodedProblem], data: MathDataModule, pad: int, watch: ProbeMonitor
    ) -> None:
        self.name, self.rows, self.data, self.pad_id, self.watch = name, rows, data, pad, watch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[PromptBatch]:
        count = self.watch.affordable(min(self.data.eval_batch_size, len(self.rows)))
        yield from EvaluationLoader(source=self.name, rows=self.rows[:count], batch_size=count, pad_id=self.pad_id)


class ProbeData(pl.LightningDataModule):
    """The prompts of the probe: encoded problems by source, in rollouts of the size that ``watch`` asks for."""

    def __init__(self, data: MathDataModule, rows: Mapping[str, Sequence[EncodedProblem]], watch: ProbeMonitor) -> None:
        super().__init__()
        self.data, self.rows, self.watch = data, rows, watch
        tokenizer = data.tokenizer
        self.pad_id = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def train_dataloader(self) -> _Prompts:
        """Return the rollouts."""
        return _Prompts(self.rows["train"], self.data, self.pad_id, self.watch)

    def val_dataloader(self) -> list[_Validation]:
        """Return the first validation source."""
        keys = [key for key, rows in self.rows.items() if key.startswith("val.") and rows][:1]
        return [_Validation(key[4:], self.rows[key], self.data, self.pad_id, self.watch) for key in keys]

    def unverified(self) -> list[Any]:
        """Return no problems: the doctor reports them itself."""
        return []


class ProbeMonitor(pl.Callback):
    """Measures the probe and ends it."""

    def __init__(
        self,
        *,
        full: int,  # prompts per rollout of one rank of the run
        sample: int,  # prompts that the probe should sample
        deadline: float,  # when the rollouts should end, as `time.monotonic`
        stray_ids: Sequence[int],  # to look for inside completions
        saves: bool,  # whether the run writes checkpoints
        started: float,  # when the process started, as `time.monotonic`, without the doctor's own work
        say: Callable[[str], None] = lambda line: None,  # shows a line of progress
    ) -> None:
        self.full, self.sample, self.deadline, self.saves = full, sample, deadline, saves
        self.stray_ids, self.started, self.say = list(stray_ids), started, say
        self.seen = Observed()
        self.next = next_size([], full, sample, 1.0)
        self.memory = PeakMemory("cpu")
        self._peaks: dict[str, float] = {}
        self._phase: str | None = None
        self._since = self._since_cpu = self._validating_since = 0.0

    # -- rollouts ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        """Start to measure."""
        assert isinstance(pl_module, PSPOModule)
        self.memory = PeakMemory(pl_module.device.type)
        self.seen.other_mib.append(self.memory.since_last_mib())
        pl_module.phases.listeners.append(self._begins)
        self._since, self._since_cpu = time.monotonic(), time.process_time()
        self.seen.start_s = self._since - self.started
        self.say(f"a rollout of {self.next} prompts")

    def _begins(self, phase: str | None) -> None:
        """Assign the peak so far to the phase that ends."""
        name = self._phase or "rollout"
        self._peaks[name] = max(self._peaks.get(name, 0.0), self.memory.since_last_mib())
        self._phase = phase

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step and decide on the next."""
        output: StepOutput = outputs
        module: Any = pl_module
        self._begins(None)
        rollout = output["rollout"]
        lengths = rollout.completions.completion_mask.sum(dim=1)
        needed = (rollout.advantages[:, 0] != 0.0) | module.objective.needs_every_row
        prompts = rollout.prompts.prompt_mask.sum(dim=1).repeat_interleave(rollout.rewards.shape[1])
        step = Step(
            prompts=len(rollout.rewards),
            tokens=int(lengths.sum()),
            seconds=time.monotonic() - self._since,
            phases=dict(output["seconds"]),
            peaks_mib=self._peaks,
            passed_tokens=int((lengths + prompts)[needed].sum()),
            cpu_s=time.process_time() - self._since_cpu,
        )
        self.seen.steps.append(step)
        self._record(output, module)
        self.seen.children_mib = max(self.seen.children_mib, children_mib())
        self._peaks, self._since, self._since_cpu = {}, time.monotonic(), time.process_time()
        self.next = next_size(self.seen.steps, self.full, self.sample, self.deadline - self._since)
        trainer.should_stop = not self.next
        following = f"a rollout of {self.next} prompts" if self.next else "validation and a checkpoint"
        self.say(f"{step.prompts} prompts took {step.seconds:.1f} s; next: {following}")

    def _record(self, output: StepOutput, module: Any) -> None:
        """Record the rollout's samples, rewards, ends and updates."""
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
                ratios = update.log_ratio.exp()
                seen.ratios = min(seen.ratios[0], float(ratios.min())), max(seen.ratios[1], float(ratios.max()))
        total, tokens = divergence(output["updates"][-1].log_ratio).tolist()
        if tokens:
            seen.divergences.append(total / tokens)
        seen.rates.append(float(module.optimizers().param_groups[0]["lr"]))

    # -- validation and checkpoint -------------------------------------------------------------------------------------

    def affordable(self, most: int) -> int:
        """Return how many validation problems to complete."""
        step = self.seen.steps[-1]
        each = max(step.seconds / step.prompts, 1e-6)
        return max(1, min(most, int(max(self.deadline + 5.0 - time.monotonic(), 3.0) / each)))

    def on_validation_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        """Start to measure the validation."""
        self._validating_since = time.monotonic()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the batch's costs."""
        seconds = time.monotonic() - self._validating_since
        self.seen.validated = len(batch), seconds, self.memory.since_last_mib()

    def on_train_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        """Save once, or estimate the costs of saving."""
        if not self.saves:
            return
        size = float(_bytes(pl_module.state_dict()) + sum(_bytes(o.state) for o in trainer.optimizers))
        path = Path(trainer.default_root_dir) / "probe.ckpt"
        if size <= _LARGEST_SAVED:
            start = time.monotonic()
            self.memory.since_last_mib()
            save_atomically(trainer, path)
            seconds = time.monotonic() - start
            self.seen.checkpoint = float(path.stat().st_size), seconds, self.memory.since_last_mib()
            path.unlink()
        else:  # Lightning builds the file in memory first
            copy = 0.0 if self.memory.on_gpu else 1.06 * size / MIB
            self.seen.checkpoint = size, size / _DISK_BYTES_PER_S, now_mib(pl_module.device.type) + copy

    def finish(self) -> Observed:
        """Return all observations, once the probe has ended."""
        validation = self.seen.validated[1] if self.seen.validated else 0.0
        self.seen.end_s = max(0.0, time.monotonic() - self._since - validation)
        self.seen.other_mib.append(self.memory.since_last_mib())
        return self.seen


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_bytes(part) for part in value.values())
    return sum(_bytes(part) for part in value) if isinstance(value, list | tuple) else 0
