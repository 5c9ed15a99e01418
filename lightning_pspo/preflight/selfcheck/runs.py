"""The runs in which the checks are made: Lightning callbacks that put them in the place of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_pspo.checkpoints.save import save_atomically
from lightning_pspo.evaluation.module import TRAINING_NOISE
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.schedules import Constant
from lightning_pspo.preflight.selfcheck import engines, gradients
from lightning_pspo.preflight.selfcheck.engines import EngineChecks, plain_logits, tokens_of
from lightning_pspo.preflight.selfcheck.gradients import Gradient, Kept, Replay, sampled
from lightning_pspo.preflight.selfcheck.results import Limits, Result, attempt, limits_of
from lightning_pspo.preflight.selfcheck.settings import OrBuiltIn
from lightning_pspo.training.passes import StepOutput
from lightning_pspo.types import Completions, PromptBatch, Rollout

CHECKPOINT = "checkpoint.ckpt"
NUDGE = 0.01
"""By which trained weights are moved before they are saved, so that an adapter that was lost would show."""

_PROBED = 4  # rows whose logits are compared after loading
_LAST = 8  # their last tokens, whose logits depend on all that came before


class Instead(pl.Callback):
    """Runs a function in the place of the first training step, and ends the run after it.

    Args:
        folder: Where it writes what it found.
        checks: Names of the checks that are to be made.
    """

    def __init__(self, folder: str, checks: Sequence[str]) -> None:
        self.folder = Path(folder)
        self.checks = tuple(checks)
        self.done = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the place of the training step; leave the gradient unclipped."""
        module: Any = pl_module
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
        """Check."""

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        (self.folder / name).write_text(json.dumps(content), encoding="utf-8")


class Measure(Instead):
    """The checks that one process can make. Writes ``measured.json``, and what the other runs compare with."""

    def run(self, module: PSPOModule, batch: PromptBatch) -> None:
        """Sample, then check; a failure of one check does not keep the others from being made."""
        limits = limits_of(str(module.trainer.precision), module.policy.dtype)
        completions = module.sample(batch, module.group_size, module.sampling, TRAINING_NOISE)
        kept, made_up = gradients.with_signal(module.reward, module.verify(batch, completions), module.group_size)
        engine, module.engine, module.reward = module.engine, Replay(completions), kept
        unlimited = gradients.prepared(module, batch, None, None)
        rollout, mini_batch = gradients.off_policy(module, *unlimited), unlimited[1]
        whole, _ = gradients.gradient_of(module, rollout, mini_batch)
        results = self._gradient_checks(module, batch, rollout, whole, limits)
        if "ratio" in self.checks:
            advice = gradients.ADVICE[gradients.FIRST]
            results += attempt(gradients.FIRST, advice, lambda: gradients.ratio_check(module, batch, limits))
        self._keep(rollout, whole, kept)
        module.engine = engine
        if "engine" in self.checks:
            found = EngineChecks(module, batch, completions, limits)
            scored = module.scorer.with_old_and_ref_logprobs(
                unlimited[0], [mini_batch, mini_batch], with_reference=False
            )
            has = torch.zeros(len(rollout.advantages), dtype=torch.bool, device=module.device)
            has[torch.cat([one.rows for one in mini_batch.micro_batches])] = True
            results += attempt(engines.GREEDY, engines.ADVICE[engines.GREEDY], found.greedy)
            results += attempt(engines.SAMPLED, engines.ADVICE[engines.SAMPLED], found.sampled)
            results += attempt(engines.DRAWN, engines.ADVICE[engines.DRAWN], lambda: found.distribution(scored, has))
        if {"checkpoint", "export"} & set(self.checks):
            module.update(unlimited[0], mini_batch, first=True)  # the optimiser has a state then
            nudge(module)
            torch.save(fingerprint(module, batch, completions), self.folder / "before.pt")
        self._write(module, results, made_up, len(batch))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, and end the run."""
        if {"checkpoint", "export"} & set(self.checks) and batch_idx == 0:
            save_atomically(trainer, self.folder / CHECKPOINT)
        trainer.should_stop = True

    def _gradient_checks(
        self, module: PSPOModule, batch: PromptBatch, rollout: Rollout, whole: Gradient, limits: Limits
    ) -> list[Result]:
        results: list[Result] = []
        if "microbatches" in self.checks:
            name = gradients.MICRO_BATCHES
            results += attempt(
                name,
                gradients.ADVICE[name],
                lambda: gradients.micro_batch_check(module, batch, rollout, whole, limits),
            )
        if "ranks" in self.checks and not can_have_two_ranks(module):
            name = gradients.RANKS
            results += attempt(
                name, gradients.ADVICE[name], lambda: gradients.split_check(module, batch, rollout, whole, limits)
            )
        return results

    def _keep(self, rollout: Rollout, whole: Gradient, kept: Kept) -> None:
        tensors = {
            "positions": rollout.prompts.positions,
            "completion_ids": rollout.completions.completion_ids,
            "completion_mask": rollout.completions.completion_mask,
            "truncated": rollout.completions.truncated,
            "logprobs": rollout.completions.logprobs,
            "old_logprobs": rollout.old_logprobs,
            "ref_logprobs": rollout.ref_logprobs,
            "total": torch.tensor(kept.total, dtype=torch.float64),
            **{f"term {name}": torch.tensor(values, dtype=torch.float64) for name, values in kept.terms.items()},
        }
        tables = {name: None if value is None else value.cpu() for name, value in tensors.items()}
        torch.save({"tables": tables, "entries": whole.entries, "norm": whole.norm}, self.folder / "rollout.pt")

    def _write(self, module: PSPOModule, results: list[Result], made_up: int, groups: int) -> None:
        source: Any = module.trainer.datamodule.train  # type: ignore[attr-defined]
        notes = []
        if isinstance(source, OrBuiltIn) and source.why is not None:
            notes.append(f"data.train was not used, but problems of this package: {source.why}")
        if made_up:
            notes.append(
                f"{made_up} of {groups} groups had equal rewards, which give no gradient, and got made-up ones"
            )
        self.write(
            "measured.json",
            {
                "results": [one.as_json() for one in results],
                "notes": notes,
                "two_ranks": can_have_two_ranks(module),
                "parameters": sum(one.numel() for one in module.policy.parameters()),
                "device": str(module.device),
                "precision": str(module.trainer.precision),
                "dtype": module.policy.dtype,
            },
        )


class OnRanks(Instead):
    """The same rollout on two ranks. Rank zero writes ``ranks.json``."""

    def run(self, module: PSPOModule, batch: PromptBatch) -> None:
        """Sample this rank's part again; then the gradient of the rollout that one process had."""
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
        _, share = engines.differences(tokens_of(drawn), tokens_of(completions))
        terms = {name[5:]: value.tolist() for name, value in own.items() if name.startswith("term ")}
        module.engine, module.reward = Replay(completions), Kept(own["total"].tolist(), terms)
        limits = module.limits
        rollout, mini_batch = gradients.prepared(module, batch, limits.micro_batch_size, limits.micro_batch_tokens)
        rollout = Rollout(**vars(rollout) | {"old_logprobs": own["old_logprobs"], "ref_logprobs": own["ref_logprobs"]})
        found, _ = gradients.gradient_of(module, rollout, mini_batch)
        share = float(module._reduce(torch.tensor(share, device=module.device), "mean"))
        if module.trainer.is_global_zero:
            whole = Gradient(stored["entries"], stored["norm"])
            kind = type(module.trainer.strategy).__name__
            self.write("ranks.json", {"gradient": whole.off_by(found), "tokens": share, "strategy": kind})


class Reload(Instead):
    """A new process's worth of objects, into which the checkpoint was loaded. Writes ``reloaded.json``."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with what was saved."""
        module: Any = pl_module
        before = torch.load(self.folder / "before.pt", map_location=module.device, weights_only=True)
        with trainer.precision_plugin.train_step_context():
            logits = probe(module, before["prompts"], before["completions"])
        off = max(float((one - two).abs().max()) for one, two in zip(before["logits"], logits, strict=True))
        here = weights_of(module)
        changed = [name for name, value in before["weights"].items() if not equal(here.get(name), value)]
        self.write(
            "reloaded.json",
            {"logits": off, "changed": changed, "missing": sorted(here.keys() ^ before["weights"].keys())},
        )
        self.done = True
        trainer.should_stop = True


def can_have_two_ranks(module: PSPOModule) -> bool:
    """Tell whether two processes would have a device each: a CPU is enough for any number."""
    return module.device.type == "cpu" or (module.device.type == "cuda" and torch.cuda.device_count() >= 2)


@torch.no_grad()
def nudge(module: PSPOModule) -> None:
    """Move every trained weight by noise of about ``NUDGE`` of its size; one of zeros by ``NUDGE``."""
    for number, parameter in enumerate(module.policy.trainable_parameters()):
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        size = float(parameter.float().square().mean().sqrt()) or 1.0
        parameter.add_(noise, alpha=NUDGE * size)


def fingerprint(module: PSPOModule, batch: PromptBatch, completions: Completions) -> dict[str, Any]:
    """Return the logits of a few completions, some entries of each weight and of the optimiser's state."""
    prompts = [ids[mask].tolist() for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
    rows = tokens_of(completions)[:: module.group_size][:_PROBED]
    logits = probe(module, prompts[:_PROBED], rows)
    return {"prompts": prompts[:_PROBED], "completions": rows, "logits": logits, "weights": weights_of(module)}


def probe(module: PSPOModule, prompts: list[list[int]], completions: list[list[int]]) -> list[Tensor]:
    """Return the logits of the last tokens of each row."""
    with module.policy.generating() as model:
        return [plain_logits(model, *row)[-_LAST:] for row in zip(prompts, completions, strict=True)]


def weights_of(module: PSPOModule) -> dict[str, Tensor]:
    """Return some entries of what a checkpoint holds: weights, and the optimiser's state."""
    found = {name: sampled(value) for name, value in module.state_dict().items()}
    state = module.trainer.optimizers[0].state_dict()["state"]
    for number, entries in state.items():
        found |= {f"optimiser {number}.{key}": sampled(one) for key, one in entries.items() if torch.is_tensor(one)}
    return found


def equal(one: Tensor | None, other: Tensor) -> bool:
    """Tell whether two tensors have the same bits, but for their device."""
    return one is not None and torch.equal(one.cpu(), other.cpu())
