"""Every logged metric: its unit, what it means, when it is healthy, and what to do when it is not. Imports no torch.

docs/metrics.md is made from this file by scripts/metrics_page.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Metric:
    """A log key, or a pattern of keys: ``<x>`` stands for any text."""

    key: str
    unit: str
    meaning: str
    healthy: str
    mend: str = "–"  # what to do when it is not

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What the keys match."""
        parts = re.split(r"<\w+>", self.key)
        return re.compile("(.+)".join(map(re.escape, parts)))


TRAINING = (
    Metric(
        "train/reward",
        "reward",
        "mean over the rollout's completions, of all ranks",
        "rises within tens of rollouts; rewards of 0 and 1 teach most between 0.2 and 0.8",
        "flat: look at `train/zero_variance`, then raise the learning rate; falling: lower it",
    ),
    Metric(
        "train/reward/<term>",
        "reward",
        "mean of one term, before its weight",
        "the term that you care about rises with the sum",
        "another term rises instead: lower its weight",
    ),
    Metric(
        "train/reward_std",
        "reward",
        "standard deviation over the rollout's completions",
        "above 0; at most 0.5 for rewards of 0 and 1",
        "0: all completions get the same reward, and nothing is learnt: choose other problems or a finer reward",
    ),
    Metric(
        "train/accuracy",
        "share",
        "completions that are graded correct",
        "rises, a little above `val/<source>/accuracy` at the same temperature",
        "reward rises and this does not: read completions with `lightning-pspo ledger show`, the reward is gamed; "
        "far above validation: use more problems",
    ),
    Metric(
        "train/no_answer",
        "share",
        "completions in which no answer was found",
        "below 0.1 and falling",
        "name the form of the answer in `data.prompt.system_prompt`, solve examples in the prompt, or raise "
        "`model.sampling.max_new_tokens` if `completion/truncated` is high as well",
    ),
    Metric(
        "train/zero_variance",
        "share",
        "groups whose rewards are all equal, and that therefore teach nothing",
        "below 0.5",
        "`model.refill_rounds: 2`, a larger `model.group_size`, or problems that are neither too easy nor too hard",
    ),
    Metric(
        "train/advantage_abs",
        "–",
        "mean size of the advantages",
        "0.3 to 0.9 with `GroupAdvantage`",
        "near 0: see `train/zero_variance`",
    ),
    Metric(
        "train/refill_rounds",
        "rounds",
        "further batches of prompts that were sampled for groups of equal rewards",
        "0, or less than `model.refill_rounds`",
        "always at the limit: the problems are too easy or too hard for this policy",
    ),
    Metric(
        "train/entropy",
        "nats per token",
        "of the policy that sampled, estimated as the mean of -log p over tokens with a gradient; nan without one",
        "falls slowly; 0.02 to 1",
        "falls to 0 within some rollouts: a lower learning rate, `model.entropy_coef: 0.001`, or Clip with a larger "
        "`epsilon_high`; rises steadily: a lower learning rate or temperature",
    ),
    Metric(
        "train/loss",
        "–",
        "negative objective, mean over the rollout's updates",
        "near 0, with noise; its level says nothing of progress",
        "not finite: the run stops by itself and writes `non_finite-rank<r>.jsonl`",
    ),
    Metric(
        "train/grad_norm",
        "–",
        "norm of the gradient before clipping, mean over the rollout's updates",
        "within a factor of ten of its usual size",
        "grows steadily or jumps: a lower learning rate, or `model.max_grad_norm: 1`",
    ),
    Metric("train/lr", "–", "learning rate at the rollout's first update", "as `model.lr_schedule` says"),
    Metric(
        "train/alpha",
        "–",
        "PSPO's smoothing in this rollout",
        "constant without `model.alpha_controller`",
        "at an end of its range all the time: change the controller's target",
    ),
    Metric("train/optimizer_steps", "steps", "optimiser steps so far", "grows by the same number with every rollout"),
    Metric(
        "train/perplexity",
        "–",
        "`SupervisedModule`: exp of the mean negative log-prob of the solutions' tokens",
        "falls towards that of text which the model knows, 1.5 to 5",
        "rises: a lower learning rate",
    ),
    Metric("train/tokens", "tokens", "`SupervisedModule`: tokens of the batch's solutions", "of similar size"),
)
COMPLETIONS = (
    Metric(
        "completion/length_tokens",
        "tokens",
        "mean length of the completions",
        "below half of `model.sampling.max_new_tokens`",
        "grows without accuracy: an advantage or aggregation without a bias to length (`FixedLength`), `SoftOverlong`",
    ),
    Metric("completion/length_max", "tokens", "longest completion", "below `model.sampling.max_new_tokens`"),
    Metric(
        "completion/truncated",
        "share",
        "completions that were cut off at the token limit",
        "below 0.1",
        "raise `model.sampling.max_new_tokens`; `model.mask_truncated: true` keeps them out of the loss",
    ),
    Metric(
        "completion/truncated_correct",
        "share",
        "completions that were cut off and are graded correct nevertheless",
        "below 0.02",
        "the policy is rewarded for not ending: `model.grader.cut_off: none` grades no cut-off text",
    ),
)
TRUST = (
    Metric("trust/ratio_mean", "–", "mean probability ratio new / old", "0.99 to 1.01", "see `trust/ratio_max`"),
    Metric("trust/ratio_p01", "–", "ratio that 1 % of the tokens do not exceed", "0.8 to 1", "see `trust/ratio_max`"),
    Metric("trust/ratio_p99", "–", "ratio that 99 % of the tokens do not exceed", "1 to 1.25", "see `trust/ratio_max`"),
    Metric(
        "trust/ratio_max",
        "–",
        "largest ratio",
        "below 10",
        "a lower learning rate, fewer `model.updates_per_rollout`, or a surrogate with bounds",
    ),
    Metric(
        "trust/would_clip",
        "share",
        "tokens that a clip at 1 ± 0.2 would stop, with any surrogate",
        "below 0.05",
        "as for `trust/ratio_max`; 0 all the time: clipping surrogates differ from Unclipped in nothing",
    ),
    Metric(
        "trust/retained",
        "share",
        "what the surrogate leaves of the unclipped gradient weight; 1 - alpha for PSPO, always",
        "0.8 to 1",
        "lower: wider bounds, or smaller steps",
    ),
    Metric(
        "trust/effective_share",
        "share",
        "effective sample size of the ratios by the number of tokens",
        "above 0.9",
        "a few tokens carry the step: as for `trust/ratio_max`",
    ),
    Metric(
        "trust/kl_update_<i>",
        "nats per token",
        "KL(old, new) that the rollout's i-th update found, before its step; 0 for the first",
        "1e-5 to 0.01 at the last update",
        "above: a lower learning rate; below: the policy hardly moves, and a higher one may learn faster",
    ),
    Metric(
        "trust/grad_norm_max",
        "–",
        "largest gradient norm of the rollout's updates, before clipping",
        "within a factor of ten of `train/grad_norm`",
        "`model.max_grad_norm: 1` cuts single spikes",
    ),
    Metric(
        "trust/clip_bound_share",
        "share",
        "updates whose gradient norm `model.max_grad_norm` cut",
        "below 0.5",
        "near 1: the bound, not the learning rate, sets the size of the steps (but AdamW rescales them): raise it",
    ),
)
SPEED = (
    Metric("time/rollout_s", "seconds", "sampling, mean over ranks", "the largest part on a GPU with one update"),
    Metric(
        "time/reward_s",
        "seconds",
        "what is left of grading after the rollout, and rewards",
        "below a tenth of `time/iteration_s`",
        "more `model.grader.workers`, or an async reward",
    ),
    Metric("time/old_logprobs_s", "seconds", "log-probs of old and reference policy", "below `time/update_s`"),
    Metric(
        "time/update_s",
        "seconds",
        "all updates of the rollout",
        "two to three times `time/old_logprobs_s` for each pass",
        "larger `model.limits` ([performance](performance.md))",
    ),
    Metric("time/iteration_s", "seconds", "the whole rollout with its updates", "steady, if lengths are"),
    Metric(
        "throughput/tokens_per_s",
        "tokens per second",
        "completion tokens of all ranks by the time of the iteration",
        "steady; rises with the number of ranks",
        "falls with steady lengths: another program uses the machine",
    ),
    Metric(
        "throughput/tflops",
        "10^12 operations per second",
        "operations that the model needs, by rank and second of the iteration: two for each weight and token of a "
        "forward pass, four of a backward pass, without attention's products; not logged of mixtures of experts",
        "steady",
        "as for `throughput/mfu`",
    ),
    Metric(
        "throughput/mfu",
        "share",
        "model FLOPs utilisation: `throughput/tflops` by what the GPU could do in bfloat16; known GPUs only",
        "above 0.1 for a small model, 0.3 for a large one; sampling alone reaches some hundredths",
        "more prompts in a rollout, larger `model.limits`, another engine ([performance](performance.md))",
    ),
)
MISMATCH = (
    Metric("mismatch/tokens", "tokens", "tokens that were compared", "those of the completions with a gradient"),
    Metric(
        "mismatch/difference",
        "nats",
        "mean distance of the engine's log-probs from those of training",
        "below 0.02",
        "an engine in float32 (`dtype`), or the same kernels; `model.mismatch_cap: 2` corrects for it",
    ),
    Metric("mismatch/largest", "nats", "largest such distance", "below 1", "see `mismatch/difference`"),
    Metric("mismatch/kl", "nats per token", "KL(engine, training)", "below 0.001", "see `mismatch/difference`"),
    Metric(
        "mismatch/truncated", "share", "tokens whose weight the cap cuts", "below 0.01", "see `mismatch/difference`"
    ),
    Metric("mismatch/weight", "–", "mean weight that corrects for it", "0.99 to 1.01", "see `mismatch/difference`"),
)
EVALUATION = (
    Metric(
        "val/<source>/accuracy",
        "share",
        "samples that are correct in the grader's mode",
        "rises; its 95 % interval is in the printed line",
        "falls while `train/accuracy` rises: use the best checkpoint (`--ckpt_path best`)",
    ),
    Metric("val/<source>/accuracy_strict", "share", "correct by the marked answer only", "near `accuracy_lenient`"),
    Metric(
        "val/<source>/accuracy_lenient",
        "share",
        "correct by any final answer",
        "near `accuracy_strict`",
        "far above it: the policy answers without the marker: name it in the prompt",
    ),
    Metric("val/<source>/no_answer", "share", "samples without an answer", "below 0.1", "as for `train/no_answer`"),
    Metric(
        "val/<source>/undecided",
        "share",
        "samples whose comparison failed or took too long",
        "below 0.005",
        "raise `model.grader.deadline_s`",
    ),
    Metric(
        "val/<source>/truncated", "share", "samples cut off", "below 0.1", "raise `model.evaluation.max_new_tokens`"
    ),
    Metric("val/<source>/truncated_correct", "share", "samples cut off and correct", "below 0.02"),
    Metric(
        "val/<source>/repetition",
        "share",
        "text that repeats itself, mean over samples",
        "below 0.1",
        "an earlier checkpoint, or a `Repetition` reward with a negative weight",
    ),
    Metric("val/<source>/prompt_repeated", "share", "samples that repeat the prompt", "below 0.05"),
    Metric(
        "val/<source>/text_after_answer",
        "share",
        "samples that go on after their answer",
        "below 0.1",
        "the policy has not learnt to end: see `train/no_answer`",
    ),
    Metric("val/<source>/length_tokens", "tokens", "mean length of the samples", "as `completion/length_tokens`"),
    Metric("val/<source>/reward", "reward", "mean reward of the samples", "near `train/reward`"),
    Metric("val/<source>/pass@<k>", "share", "problems that at least one of k samples solves", "above accuracy"),
    Metric("val/<source>/maj@<k>", "share", "problems that the vote of k samples solves", "above accuracy"),
    Metric(
        "val/<source>/best@<k>",
        "share",
        "problems that the best of k samples by `model.evaluation.selector` solves",
        "between accuracy and `pass@<k>`",
    ),
)
JUDGE = (
    Metric("judge/<source>/missing", "completions", "completions without a score", "0", "see `judge_summary.json`"),
    Metric("judge/rollout", "rollouts", "rollout whose completions the scores are of", "at most the logged rollout"),
    Metric(
        "judge/<source>/<dimension>",
        "score, 1 to 5",
        "mean score by a language model",
        "rises with accuracy",
        "rises without it: the judge is pleased by form; see its reliability in `judge_summary.json`",
    ),
)
GROUPS = {
    "Training": TRAINING,
    "Completions": COMPLETIONS,
    "Trust region": TRUST,
    "Speed": SPEED,
    "Engine": MISMATCH,
    "Evaluation": EVALUATION,
    "Judge": JUDGE,
}
METRICS = tuple(metric for group in GROUPS.values() for metric in group)

_INTRODUCTION = """\
<!-- Made by scripts/metrics_page.py from lightning_pspo/metrics.py. -->
# Metrics

Every scalar that a run logs, to whichever logger. The x axis of all of them is the number of finished rollouts (batches
with `SupervisedModule`), also in a resumed run; `train/optimizer_steps` has the optimiser steps. W&B calls the axis
`trainer/global_step`. Lightning's `LearningRateMonitor` writes a rollout's rate when it begins, one point earlier.
Figures are over all ranks. Ranges are what runs on mathematics usually show, not limits. `lightning-pspo report` draws
the curves.
"""
_NOTES = {
    "Trust region": "Over the tokens that entered a backward pass, in all updates of the rollout, at the level that "
    "the surrogate saw (`model.ratio_level`); nan without such a token ([objective](objective.md)).",
    "Engine": "Only of engines that give log-probs of their own, such as `VLLMEngine`.",
    "Evaluation": "`test` logs the same as `test/<source>/...`. Temperatures of `model.evaluation.temperatures` after "
    "the first add theirs to the name: `val/<source>/accuracy@t1`. [evaluation](evaluation.md) has the definitions.",
    "Judge": "Of `JudgeEval` ([judging](judging.md)).",
}


def declared(key: str) -> Metric | None:
    """Return the declaration of a logged key, None if there is none.

    >>> [metric and metric.key for metric in map(declared, ("test/math/maj@4@t0.6", "train/reward/format", "lr"))]
    ['val/<source>/maj@<k>', 'train/reward/<term>', None]
    """
    name = re.sub(r"@t[-+.\de]+$", "", re.sub(r"^test/", "val/", key))
    return next((metric for metric in METRICS if metric.pattern.fullmatch(name)), None)


def page() -> str:
    """Return docs/metrics.md."""
    lines = [_INTRODUCTION]
    for title, metrics in GROUPS.items():
        lines += [f"## {title}\n"] + ([f"{_NOTES[title]}\n"] if title in _NOTES else [])
        lines += ["| name | unit | what it is | healthy | if not |", "|---|---|---|---|---|"]
        for metric in metrics:
            lines.append(f"| `{metric.key}` | {metric.unit} | {metric.meaning} | {metric.healthy} | {metric.mend} |")
        lines.append("")
    return "\n".join(lines)
