"""Make the checks in runs whose training step a Lightning callback replaces."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_pspo.checkpoints.save import save_atomically
from lightning_pspo.evaluation.module import TRAINING_NOISE
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.schedules import Constant
from lightning_pspo.preflight.selfcheck import gradients
from lightning_pspo.preflight.selfcheck.engines import EngineChecks, bit_checks, plain_logits, shared_tokens
from lightning_pspo.preflight.selfcheck.gradients import FixedReward, Gradient, Replay, sampled
from lightning_pspo.preflight.selfcheck.results import Check, Result, attempt, say, tolerances_of
from lightning_pspo.preflight.selfcheck.settings import SourceWithFallback, affordable
from lightning_pspo.rollout.base import prompt_rows
from lightning_pspo.rollout.consistency import consistent_engine
from lightning_pspo.training.passes import StepOutput
from lightning_pspo.types import Completions, PromptBatch, Rollout

CHECKPOINT = "checkpoint.ckpt"
NUDGE = 0.01
"""Relative change of the trained weights before they are saved, so that a lost adapter would show."""

ALIKE = "the same alone and among other rows"

_PROBED = 4  # rows whose logits are compared after loading
_LAST = 8  # last tokens of these rows, whose logits depend on all tokens before


class ReplacedStep(pl.Callback):
    """Replaces the first training step by ``run``, and ends the run after it.

    The runs leave results for each other in ``folder``. If the module ``is_consistent``, the check at the start of
    ``fit`` would change nothing, and is not made.
    """

    def __init__(self, folder: str, checks: Sequence[str], is_consistent: bool = False) -> None:
        self.folder = Path(folder)
        self.checks = tuple(checks)
        self.is_consistent = is_consistent
        self.done = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the training step; leave the gradient unclipped."""
        module: Any = pl_module
        module.consistency_is_checked = self.is_consistent
        module.max_grad_norm = None
        module.lr_schedule = Constant()
        module.training_step = lambda batch, batch_idx: self._step(module, batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the run."""
        trainer.should_stop = True

    def _step(self, module: PSPOModule, batch: PromptBatch) -> StepOutput | dict[str, Tensor]:
        if not self.done:
            self.done = True
            self.run(module, batch)
        return {"loss": torch.zeros((), device=module.device)}

    def run(self, module: PSPOModule, batch: PromptBatch) -> None:
        """Make the checks."""

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        (self.folder / name).write_text(json.dumps(content), encoding="utf-8")


class Measure(ReplacedStep):
    """Makes the checks of one process; writes ``measured.json`` and the data that the other runs compare with.

    The check at the start of ``fit`` is made here: its result is a line of the table. A first pass decides how many
    completions, and how many tokens of each, fit into about ``seconds``.
    """

    def __init__(self, folder: str, checks: Sequence[str], is_consistent: bool = True, seconds: float = 30.0) -> None:
        super().__init__(folder, checks, is_consistent)
        self.seconds = seconds
        self.notes: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check as ``fit`` does at its start, outside of a training step."""
        module: Any = pl_module
        self.results = attempt(Check.CONSISTENT, lambda: [consistency_check(module)])
        self.is_consistent = self.results[0].measured == ALIKE

    def run(self, module: PSPOModule, batch: PromptBatch) -> None:
        """Sample, then check; a failed check does not prevent the others."""
        results = self.results if "engine" in self.checks else [r for r in self.results if not r.passed]
        tolerances = tolerances_of(str(module.trainer.precision), module.policy.dtype)
        self._fit_into_time(module, batch)
        say("sampling")
        completions = module.sample(batch, module.group_size, module.sampling, TRAINING_NOISE)
        rewards, made_up = gradients.with_signal(module.reward, module.verify(batch, completions), module.group_size)
        engine, module.engine, module.reward = module.engine, Replay(completions), rewards
        on_policy, mini_batch = gradients.prepared(module, batch, gradients.UNLIMITED)
        scored = module.scorer.with_old_and_ref_logprobs(
            on_policy, [mini_batch, mini_batch], with_reference=module.objective.kl.coef > 0.0
        )
        rollout = gradients.off_policy(module, scored)
        say("comparing gradients")
        reference = gradients.gradient_of(module, rollout, mini_batch)
        compared, limit = (rollout, mini_batch, reference), tolerances.gradient
        if "microbatches" in self.checks:
            results += attempt(
                Check.MICRO_BATCHES, lambda: gradients.micro_batch_check(module, batch, *compared, limit)
            )
        if "ranks" in self.checks and not can_have_two_ranks(module):
            results += attempt(Check.RANKS, lambda: gradients.split_check(module, *compared, limit))
        if "ratio" in self.checks:
            results += attempt(Check.FIRST, lambda: gradients.ratio_check(module, batch, scored, tolerances))
        self._store(rollout, reference, rewards)
        module.engine = engine
        if "bits" in self.checks:
            say("repeating the rollout")
            results += attempt(Check.SAME_GRADIENT, lambda: bit_checks(module, batch, completions, *compared))
        if "engine" in self.checks:
            say("comparing engines")
            engine_checks = EngineChecks(module, batch, completions, tolerances)
            has_logprobs = torch.zeros(len(rollout.advantages), dtype=torch.bool, device=module.device)
            has_logprobs[torch.cat([part.rows for part in mini_batch.micro_batches])] = True
            results += attempt(Check.GREEDY, engine_checks.greedy)
            results += attempt(Check.SAMPLED, lambda: engine_checks.sampled(scored, has_logprobs))
        if {"checkpoint", "export"} & set(self.checks):
            module.update(on_policy, mini_batch, first=True)  # gives the optimiser a state
            nudge(module)
            prompts, rows = prompt_rows(batch)[:_PROBED], completions.unpadded()[:: module.group_size][:_PROBED]
            state = {"prompts": prompts, "completions": rows, "logits": probe(module, prompts, rows)}
            torch.save(state | {"weights": weights_of(module)}, self.folder / "before.pt")
        self._write(module, results, made_up, len(batch))

    def _fit_into_time(self, module: PSPOModule, batch: PromptBatch) -> None:
        """Take fewer completions and tokens if a pass is slow."""
        say("timing a pass")
        prompt, before = prompt_rows(batch)[0], (module.group_size, module.sampling.max_new_tokens)
        with module.policy.generating() as model:
            plain_logits(model, prompt, [prompt[-1]])  # warms up
            start = time.perf_counter()
            plain_logits(model, prompt, [prompt[-1]] * module.sampling.max_new_tokens)
            seconds = time.perf_counter() - start
        completions, tokens = affordable(seconds, len(batch), *before, self.seconds)
        if (completions, tokens) == before:
            return
        module.group_size, module.sampling = completions, replace(module.sampling, max_new_tokens=tokens)
        module.minibatches_per_rollout = min(module.minibatches_per_rollout, completions * len(batch))
        self.notes.append(
            f"a forward pass of one row takes {seconds:.2g} s: {completions} completions of {tokens} tokens per problem"
            f" were taken, not {before[0]} of {before[1]}; --seconds above {self.seconds:g} takes more"
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, and end the run."""
        say("saving a checkpoint")
        if {"checkpoint", "export"} & set(self.checks) and batch_idx == 0:
            save_atomically(trainer, self.folder / CHECKPOINT)
        trainer.should_stop = True

    def _store(self, rollout: Rollout, reference: Gradient, rewards: FixedReward) -> None:
        """Store the rollout and its gradient for the run on two ranks."""
        tensors = {
            "positions": rollout.prompts.positions,
            "completion_ids": rollout.completions.completion_ids,
            "completion_mask": rollout.completions.completion_mask,
            "truncated": rollout.completions.truncated,
            "logprobs": rollout.completions.logprobs,
            "old_logprobs": rollout.old_logprobs,
            "ref_logprobs": rollout.ref_logprobs,
            "total": torch.tensor(rewards.total, dtype=torch.float64),
            **{f"term {name}": torch.tensor(values, dtype=torch.float64) for name, values in rewards.terms.items()},
        }
        tables = {name: None if value is None else value.cpu() for name, value in tensors.items()}
        torch.save({"tables": tables, "entries": reference.entries, "norm": reference.norm}, self.folder / "rollout.pt")

    def _write(self, module: PSPOModule, results: Sequence[Result], made_up: int, groups: int) -> None:
        source: Any = module.trainer.datamodule.train  # type: ignore[attr-defined]
        if isinstance(source, SourceWithFallback) and source.fallback_reason is not None:
            self.notes.append(f"generated problems were used instead of data.train: {source.fallback_reason}")
        if made_up:
            self.notes.append(
                f"{made_up} of {groups} groups had equal rewards, which give no gradient, and got made-up rewards"
            )
        self.write(
            "measured.json",
            {
                "results": [asdict(result) for result in results],
                "notes": self.notes,
                "is_consistent": self.is_consistent,
                "group_size": module.group_size,
                "minibatches_per_rollout": module.minibatches_per_rollout,
                "tokens": module.sampling.max_new_tokens,
                "two_ranks": can_have_two_ranks(module),
                "parameters": sum(parameter.numel() for parameter in module.policy.parameters()),
                "device": str(module.device),
                "precision": str(module.trainer.precision),
                "dtype": module.policy.dtype,
            },
        )


class OnRanks(ReplacedStep):
    """Repeats the rollout on two ranks; rank zero writes ``ranks.json``."""

    def run(self, module: PSPOModule, batch: PromptBatch) -> None:
        """Sample this rank's share again, and compute the gradient of the rollout of the single process."""
        stored = torch.load(self.folder / "rollout.pt", weights_only=True)
        tables: dict[str, Any] = {
            name: None if value is None else value.to(module.device) for name, value in stored["tables"].items()
        }
        known = tables["positions"].tolist()
        groups = torch.tensor([known.index(position) for position in batch.positions.tolist()], device=module.device)
        within = torch.arange(module.group_size, device=module.device)
        rows = (groups.unsqueeze(1) * module.group_size + within).flatten()
        own: dict[str, Any] = {
            name: None if value is None or name == "positions" else value[rows] for name, value in tables.items()
        }
        drawn = module.sample(batch, module.group_size, module.sampling, TRAINING_NOISE)
        completions = Completions(own["completion_ids"], own["completion_mask"], own["truncated"], own["logprobs"])
        share = shared_tokens(drawn.unpadded(), completions.unpadded())
        terms = {name[5:]: value.tolist() for name, value in own.items() if name.startswith("term ")}
        module.engine, module.reward = Replay(completions), FixedReward(own["total"].tolist(), terms)
        rollout, mini_batch = gradients.prepared(module, batch, module.limits)
        rollout = replace(rollout, old_logprobs=own["old_logprobs"], ref_logprobs=own["ref_logprobs"])
        gradient = gradients.gradient_of(module, rollout, mini_batch)
        share = float(module._reduce(torch.tensor(share, device=module.device), "mean"))
        if module.trainer.is_global_zero:
            off = Gradient(stored["entries"], stored["norm"]).off_by(gradient)
            strategy = type(module.trainer.strategy).__name__
            self.write("ranks.json", {"gradient": off, "tokens": share, "strategy": strategy})


class Reload(ReplacedStep):
    """Compares new objects, into which the checkpoint was loaded; writes ``reloaded.json``."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the state before saving."""
        module: Any = pl_module
        before = torch.load(self.folder / "before.pt", map_location=module.device, weights_only=True)
        with trainer.precision_plugin.train_step_context():
            logits = probe(module, before["prompts"], before["completions"])
        pairs = zip(before["logits"], logits, strict=True)
        off = max(float((saved - loaded).abs().max()) for saved, loaded in pairs)
        saved, loaded = before["weights"], weights_of(module)
        changed = [name for name in saved.keys() & loaded.keys() if not torch.equal(saved[name].cpu(), loaded[name])]
        different = sorted([*changed, *(saved.keys() ^ loaded.keys())])
        self.write("reloaded.json", {"logits": off, "different": different})
        self.done = True
        trainer.should_stop = True


def consistency_check(module: PSPOModule) -> Result:
    """Check that rollouts and updates see the same model, and mend the module, as ``fit`` does at its start."""
    engine = module.engine
    with module.trainer.precision_plugin.forward_context():
        module.engine = consistent_engine(module.policy, engine)
    module.policy.train()
    mended = [] if module.policy.causal_lm.training else ["trained in evaluation mode"]
    mended += [] if module.engine is engine else [f"sampled by {type(module.engine).__name__}"]
    measured = f"as `fit` mends it: {', '.join(mended)}" if mended else ALIKE
    return Result(Check.CONSISTENT, measured, "alone as among others", True)


def can_have_two_ranks(module: PSPOModule) -> bool:
    """Return whether two processes would each have a device; a CPU serves any number."""
    return module.device.type == "cpu" or (module.device.type == "cuda" and torch.cuda.device_count() >= 2)


@torch.no_grad()
def nudge(module: PSPOModule) -> None:
    """Add noise of ``NUDGE`` times its root mean square to every trained weight; of ``NUDGE`` if that is 0."""
    for number, parameter in enumerate(module.policy.trainable_parameters()):
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        size = float(parameter.float().square().mean().sqrt()) or 1.0
        parameter.add_(noise, alpha=NUDGE * size)


def probe(module: PSPOModule, prompts: list[list[int]], completions: list[list[int]]) -> list[Tensor]:
    """Return the logits of the last tokens of each row."""
    with module.policy.generating() as model:
        return [plain_logits(model, *row)[-_LAST:] for row in zip(prompts, completions, strict=True)]


def weights_of(module: PSPOModule) -> dict[str, Tensor]:
    """Return some entries of the weights and of the optimiser's state, which a checkpoint holds."""
    tensors = {name: sampled(value) for name, value in module.state_dict().items()}
    state = module.trainer.optimizers[0].state_dict()["state"]
    for number, entries in state.items():
        for key, value in entries.items():
            if torch.is_tensor(value):
                tensors[f"optimiser {number}.{key}"] = sampled(value)
    return tensors
