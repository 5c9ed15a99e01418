"""Dataclasses that pass between rooms: problems, prompts, samples, completions, rollouts.

Shape letters: B prompts of this rank, G completions per prompt, N = B * G rows (row b * G + g), P prompt tokens,
T completion tokens. A mask is bool and True counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_pspo.grading import Attempt, Grade, Scorer

_PROMPT_TENSORS = ("prompt_ids", "prompt_mask", "positions", "valid")


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its reference answer.

    Attributes:
        id: Unique within its source, stable between runs.
        question: The text that the user's turn of the prompt holds.
        answer: The reference ("gold") answer, without its derivation.
        scorer: The task's own judgement of an extracted answer, where equality with the reference is not what the task
            asks; None compares with ``answer``.
        solution: A worked solution, which SupervisedModule learns from; None if the data have none.
        system: The problem's own system turn, which takes the place of a missing system prompt; None for none.
    """

    id: str
    question: str
    answer: str
    scorer: Scorer | None = field(default=None, compare=False, repr=False)
    solution: str | None = field(default=None, compare=False, repr=False)
    system: str | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished and verified completion: all that a reward may look at.

    Attributes:
        problem: What was asked.
        completion: The decoded completion without special tokens, from the prompt's beginning of an answer on.
        grade: The verifier's verdict, with the extracted answer and the rule that decided.
        truncated: True when the token limit ended the completion, not an end-of-sequence token.
        length_tokens: Completion tokens, the end-of-sequence token included.
        prompt: Index of its prompt in the batch, at least 0: distinguishes groups that answer the same problem.
        raw_completion: The decoded completion with special tokens such as ``<think>``, but without those of its end,
            padding and beginning; None if it has no others.
    """

    problem: Problem
    completion: str
    grade: Grade
    truncated: bool
    length_tokens: int
    prompt: int = 0
    raw_completion: str | None = None

    @property
    def completion_with_special_tokens(self) -> str:
        """The completion with its special tokens, for rewards that read them."""
        return self.completion if self.raw_completion is None else self.raw_completion

    @property
    def attempt(self) -> Attempt:
        """The completion with all that its grade depends on."""
        problem = self.problem
        return Attempt(self.completion, problem.answer, problem.question, self.truncated, problem.scorer)


@dataclass(frozen=True)
class PromptBatch:
    """B tokenised prompts of one source, left-padded.

    Attributes:
        source: Name of the source: the key in ``data.val`` or ``data.test``, or ``train``.
        problems: B problems.
        prompt_ids: (B, P) long.
        prompt_mask: (B, P) bool, False on the padding at the left.
        positions: (B,) long; the prompts' positions in the run's endless stream of prompts (training) or in the source
            (evaluation). Sampling noise is keyed by them, so that a prompt's completions do not depend on how the work
            is split or on when the run was interrupted.
        valid: (B,) bool; False for a repeated row that only makes every rank's number of batches equal.
        answer_prefix: Beginning of every answer, at the end of the prompts.
        stop_ids: Ids that end a completion, beside the policy's own.
    """

    source: str
    problems: tuple[Problem, ...]
    prompt_ids: Tensor
    prompt_mask: Tensor
    positions: Tensor
    valid: Tensor
    answer_prefix: str = ""
    stop_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Return B."""
        return len(self.problems)

    def rows(self, indices: Sequence[int]) -> PromptBatch:
        """Return the batch of the prompts at ``indices``, at least one."""
        tensors = {name: getattr(self, name)[list(indices)] for name in _PROMPT_TENSORS}
        return replace(self, problems=tuple(self.problems[index] for index in indices), **tensors)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PromptBatch:
        """Return the batch with its tensors on ``device``; Lightning's batch transfer calls this."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _PROMPT_TENSORS}
        return replace(self, **moved)


@dataclass(frozen=True)
class Completions:
    """What an engine sampled, right-padded.

    Attributes:
        completion_ids: (N, T) long.
        completion_mask: (N, T) bool, True through the first end-of-sequence token.
        truncated: (N,) bool, True where the token limit came before an end-of-sequence token.
        logprobs: (N, T) float32, the log-probs that the engine says it sampled with, 0 where the mask is False; None if
            the engine does not say.
    """

    completion_ids: Tensor
    completion_mask: Tensor
    truncated: Tensor
    logprobs: Tensor | None = None

    def rows(self, indices: Tensor) -> Completions:
        """Return the completions at ``indices`` (n,)."""
        logprobs = None if self.logprobs is None else self.logprobs[indices]
        return Completions(
            self.completion_ids[indices], self.completion_mask[indices], self.truncated[indices], logprobs
        )

    def unpadded(self) -> list[list[int]]:
        """Return the ids of each completion, end-of-sequence token included."""
        lengths = self.completion_mask.sum(dim=1).tolist()
        return [ids[:length] for ids, length in zip(self.completion_ids.tolist(), lengths, strict=True)]


@dataclass(frozen=True)
class Inputs:
    """What a forward pass takes: n completions of u prompts.

    Attributes:
        prompt_ids: (u, P) long, left-padded.
        prompt_mask: (u, P) bool, at least one True in each row.
        completion_ids: (n, T) long, right-padded.
        completion_mask: (n, T) bool, True through a completion's end.
        prompt_of: (n,) long, each completion's prompt.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    prompt_of: Tensor


def inputs_of(prompts: PromptBatch, completions: Completions, rows: Tensor, completions_per_prompt: int) -> Inputs:
    """Return what a forward pass of ``rows`` (n,) takes, without the columns that pad all of them."""
    chosen, prompt_of = (rows // completions_per_prompt).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    prompt_mask, mask = prompts.prompt_mask[chosen], completions.completion_mask[rows]
    first = int(prompt_mask.any(dim=0).int().argmax())
    width = int(mask.sum(dim=1).max())
    return Inputs(
        prompts.prompt_ids[chosen, first:],
        prompt_mask[:, first:],
        completions.completion_ids[rows, :width],
        mask[:, :width],
        prompt_of,
    )


@dataclass(frozen=True)
class Rollout:
    """One rank's part of a rollout: sampled, verified, rewarded, with its advantages.

    Attributes:
        prompts: The B prompts.
        completions: The N = B * G completions.
        samples: N samples, in row order.
        rewards: (B, G) float32, the total that the advantages come from.
        reward_terms: Name -> (B, G) float32, each term before its weight.
        advantages: (N, 1) float32.
        old_logprobs: (N, T) float32 log-probs under the behaviour policy, detached; 0 in rows that no update needs.
            Those of the first mini-batch are filled in by its first update, whose own they are.
        ref_logprobs: (N, T) float32 log-probs under the reference policy, detached; None without a KL term.
        refill_rounds: Further batches of prompts that were sampled to replace groups of equal rewards.
    """

    prompts: PromptBatch
    completions: Completions
    samples: Sequence[Sample]
    rewards: Tensor
    reward_terms: Mapping[str, Tensor]
    advantages: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor | None = None
    refill_rounds: int = 0

    def inputs(self, rows: Tensor) -> Inputs:
        """Return what a forward pass of ``rows`` (n,) takes, without the columns that pad all of them."""
        return inputs_of(self.prompts, self.completions, rows, self.rewards.shape[1])


@dataclass(frozen=True)
class EvaluationOutput:
    """What ``validation_step``, ``test_step`` and ``predict_step`` return for one batch.

    Attributes:
        batch: The B prompts.
        samples: Evaluation temperature -> samples, prompt-major: ``evaluation.samples`` per prompt, one if greedy.
    """

    batch: PromptBatch
    samples: Mapping[float, Sequence[Sample]]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> EvaluationOutput:
        """Return the output with its batch on ``device``; Lightning moves predictions to the CPU with it."""
        return replace(self, batch=self.batch.to(device, non_blocking=non_blocking))
