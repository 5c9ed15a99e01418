"""Supervised fine-tuning on worked solutions as a LightningModule: one training step is one optimiser step."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_pspo.checkpoints.compatibility import check_solutions
from lightning_pspo.data.prompt_format import answer_after
from lightning_pspo.errors import InputError
from lightning_pspo.lazy import from_lazy, lazy_instance
from lightning_pspo.objective.surrogates import Aggregation, TokenMean
from lightning_pspo.trainable import TrainableModule
from lightning_pspo.training.loop_counters import finished_rollouts
from lightning_pspo.training.minibatches import MiniBatch, Rows, plan
from lightning_pspo.training.phases import Phases, training_loader
from lightning_pspo.training.scoring import laid_out
from lightning_pspo.types import Completions, Problem, PromptBatch


class SupervisedOutput(TypedDict):
    """What ``SupervisedModule.training_step`` returns; there is no rollout in it."""

    loss: Tensor
    seconds: dict[str, float]


class SupervisedModule(TrainableModule):
    """Fine-tunes a causal language model on worked solutions (SFT), as is usual before ``PSPOModule``.

    Minimises the mean negative log-prob of the solutions' tokens, the end-of-sequence token included and the prompt
    not. That token is the one with which the chat template ends a turn, if it ends a completion, else the tokenizer's.
    A batch is ``data.prompts_per_rollout`` problems over all ranks, and ``data.num_rollouts`` counts batches; each is
    one optimiser step, whose gradient does not depend on micro-batches or ranks. Evaluation samples, as always.

    Args:
        aggregation: The mean: ``TokenMean`` weighs every token of a batch alike, ``SequenceMean`` every solution.
        common: Settings of ``TrainableModule``.

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(self, *, aggregation: Aggregation = lazy_instance(TokenMean), **common: Any) -> None:
        super().__init__(**common)
        self.aggregation = from_lazy(aggregation)
        self._opening, self._prefix = "", ""  # the end of a prompt, and the beginning of an answer in it
        self._end = self.policy.tokenizer.eos_token_id

    def training_step(self, batch: PromptBatch, batch_idx: int) -> SupervisedOutput:
        """Take one optimiser step on the solutions of ``batch``."""
        self.phases = Phases(self.phases.listeners)
        self.log("train/lr", float(self._optimizer().param_groups[0]["lr"]))
        with self.phases.timed("update"):
            solutions = self._solutions(batch.problems)
            rows = Rows.of_solutions(batch, solutions, rank=self.global_rank, world_size=self.trainer.world_size)
            (mini_batch,) = plan(
                rows, minibatches=1, aggregation=self.aggregation, limits=self.limits, reduce=self._reduce
            )
            (mini_batch,) = laid_out(self.policy, batch, solutions, [mini_batch], completions_per_prompt=1)
            sums = self._backward(mini_batch)

            def refusal(norm: Tensor) -> Exception:
                names = ", ".join(problem.id for problem in batch.problems)
                return FloatingPointError(
                    f"The loss is {float(sums[0])} and the gradient norm {float(norm)}: the step was not taken, and "
                    f"the weights are those of before it. Its problems are {names}."
                )

            grad_norm = self._step(sums[0], refusal)
        loss, negative_logprobs, tokens = self._reduce(sums, "sum")
        values: dict[str, Tensor | float] = {
            "train/loss": loss,
            "train/perplexity": (negative_logprobs / tokens).exp(),
            "train/tokens": tokens,
            "train/grad_norm": grad_norm,
            "train/optimizer_steps": float(self.global_step),
            "step": float(finished_rollouts(self.trainer)),  # the loggers' x axis: batches
        }
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        return {"loss": loss, "seconds": self.phases}

    def _backward(self, mini_batch: MiniBatch) -> Tensor:
        """Accumulate the gradient; return this rank's parts of loss, negative log-probs and tokens, (3,)."""
        sums = torch.zeros(3, device=self.device)
        for number, micro_batch in enumerate(mini_batch.micro_batches, start=1):
            assert micro_batch.packed is not None
            assert micro_batch.cells is not None
            logprobs, _ = self.policy.logprobs(micro_batch.packed, temperature=1.0, top_p=1.0)  # (n, T')
            mask = micro_batch.loss_mask[:, : logprobs.shape[1]]
            loss = -self.aggregation(logprobs, mask, mini_batch.denominator)  # ()
            self._accumulate(loss, is_last=number == len(mini_batch.micro_batches))
            sums += torch.stack([loss.detach(), -logprobs.detach().flatten()[micro_batch.cells].sum(), mask.sum()])
        return sums

    def _solutions(self, problems: Sequence[Problem]) -> Completions:
        """Return the problems' solutions as completions, each with an end-of-sequence token."""
        rows = [self._encoded(problem) for problem in problems]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        ids = torch.full((len(rows), int(lengths.max())), self.policy.pad_id, device=self.device)
        mask = torch.arange(ids.shape[1], device=self.device) < lengths.unsqueeze(1)  # (B, T)
        ids[mask] = torch.tensor([id_ for row in rows for id_ in row], device=self.device)
        return Completions(ids, mask, torch.zeros_like(lengths, dtype=torch.bool))

    def _encoded(self, problem: Problem) -> list[int]:
        text = answer_after(self._opening, str(problem.solution), self._prefix)
        return [*self.policy.tokenizer(text, add_special_tokens=False)["input_ids"], self._end]

    # -- set-up and state ----------------------------------------------------------------------------------------------

    def check_run(self, trainer: Trainer, ckpt_path: str | None) -> None:
        """Refuse callbacks that read rollouts, and what the trainer cannot do with this policy."""
        super().check_run(trainer, ckpt_path)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if trainer.state.fn in (None, TrainerFn.FITTING) and getattr(callback, "reads_rollouts", False):
                raise InputError(
                    f"`trainer.callbacks` must not hold {type(callback).__name__} with SupervisedModule, which "
                    "makes no rollouts: remove it."
                )

    def setup(self, stage: str) -> None:
        """Refuse problems without a solution, or with one that exceeds the model's context."""
        super().setup(stage)
        if stage != "fit":
            return
        self.check_run(self.trainer, None)
        rows = training_loader(self.trainer).rows
        chat = self.trainer.datamodule.prompts.chat  # type: ignore[attr-defined]
        closing = [] if chat is None else chat.closing_ids()
        ends = (id_ for id_ in closing if id_ in self.policy.eos_ids)
        self._end = next(ends, self.policy.tokenizer.eos_token_id)
        self._opening, self._prefix = str(self.policy.tokenizer.decode(rows[0].ids)), rows[0].answer_prefix
        limit = self.policy.context_length or math.inf
        for row in rows:
            problem = row.problem
            if not (problem.solution or "").strip():
                raise InputError(
                    f"data.train: SupervisedModule learns from worked solutions, and problem {problem.id!r} has none: "
                    "use a source with solutions, or name their column."
                )
            if (tokens := len(row.ids) + len(self._encoded(problem))) > limit:
                raise InputError(
                    f"data.train: prompt and solution of problem {problem.id!r} must have at most {limit} tokens, the "
                    f"model's context, they have {tokens}."
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what identifies the solutions."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["solutions"] = self._checksum()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of a run on other solutions, or of another kind of training."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            check_solutions(checkpoint, self._checksum())

    def _checksum(self) -> int:
        rows = training_loader(self.trainer).rows
        return zlib.crc32("\0".join(str(row.problem.solution) for row in rows).encode())
