"""What the settings of the objective, the optimiser and the reward rule out, before anything is sampled."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch

from lightning_pspo.grading import grade
from lightning_pspo.objective.advantages import GroupAdvantage
from lightning_pspo.objective.surrogates import PSPO, Clip, FixedLength, SmoothedSurrogate, TruncatedIS, Unclipped
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.subject import Subject, parts
from lightning_pspo.rewards import SoftOverlong, TargetLength
from lightning_pspo.training.rules import objections
from lightning_pspo.types import Problem, Sample

logger = logging.getLogger(__name__)

SMALL_MODEL = 50_000_000
"""Parameters below which learning rates are larger by far: the tiny policy of the quickstart has 1e-4."""

_RATIO_NEVER = 5.0
_FACTORS = 10_000  # values of the schedule that are looked at, at most
_SEQUENCE_CLIP = 0.05
_TOKEN_CLIP = 2e-3


def check_updates(subject: Subject) -> Iterator[Finding]:
    """Look at how many updates a rollout has, and at what they can and cannot change."""
    module, updates = subject.module, subject.updates_per_rollout
    rows = subject.data.prompts_per_rollout * module.group_size
    if updates == 1:
        idle = isinstance(module.surrogate, Unclipped)
        text = "one update per rollout: the ratio is always 1"
        if isinstance(module.surrogate, SmoothedSurrogate):
            text += ": alpha only scales the gradient"
        elif not idle:
            text += f": {type(module.surrogate).__name__}'s bounds never act"
        change = "" if idle else "model.updates_per_rollout or model.minibatches_per_rollout: 2 or more"
        yield (note if idle else warning)("updates_per_rollout", text + ".", change)
    else:
        yield fine("updates_per_rollout", f"{updates} updates per rollout, {updates * subject.rollouts} in the run.")
    for objection in objections(module.choices(module.optimizer([torch.nn.Parameter(torch.zeros(1))]))):
        if objection.rule == "alpha_under_adam":
            yield note(objection.rule, objection.text, objection.mend)
    if module.minibatches_per_rollout > rows:
        yield error(
            "minibatches_per_rollout",
            f"{module.minibatches_per_rollout} mini-batches of a rollout of {rows} rows: the run is refused.",
            f"model.minibatches_per_rollout: at most {rows}",
        )
    elif rows / module.minibatches_per_rollout < module.group_size:
        yield warning(
            "minibatches_per_rollout",
            f"a mini-batch has {rows / module.minibatches_per_rollout:.1f} rows, less than one group of "
            f"{module.group_size}: an update sees only a part of the completions that are compared.",
            f"model.minibatches_per_rollout: at most {subject.data.prompts_per_rollout}",
        )


def check_group(subject: Subject) -> Iterator[Finding]:
    """Look at the group size and at the distribution that is sampled."""
    module = subject.module
    size = module.group_size
    if size < 4 and isinstance(module.advantage, GroupAdvantage):
        share = 1 - 2 * 0.5**size
        yield (warning if size == 2 else note)(
            "group_size",
            f"groups of {size}: even at a solve rate of one half only {share:.0%} of them have a signal, and the mean "
            "that rewards are held against comes from so few.",
            "model.group_size: 4 or more, usually 8 or 16",
        )
    else:
        yield fine("group_size", f"{size} completions a prompt.")
    if module.sampling.temperature < 0.3 or module.sampling.temperature > 1.5:
        effect = (
            "completions of a group are nearly alike"
            if module.sampling.temperature < 1.0
            else "completions turn to noise"
        )
        yield warning(
            "temperature",
            f"rollouts at temperature {module.sampling.temperature:g}: {effect}.",
            "model.sampling.temperature: 0.6 to 1.2",
        )
    if module.sampling.top_p < 0.5:
        yield warning(
            "top_p", f"rollouts from the nucleus of {module.sampling.top_p:g} only.", "model.sampling.top_p: 0.9 to 1"
        )


def check_surrogate(subject: Subject) -> Iterator[Finding]:
    """Look for bounds that no ratio reaches, and for settings without an effect."""
    module, surrogate = subject.module, subject.module.surrogate
    level = module.objective.ratio_level
    if isinstance(surrogate, Clip):
        low, high = surrogate.epsilon_low, surrogate.epsilon_high
        if low >= 1.0 or high >= _RATIO_NEVER:
            yield warning(
                "clip",
                f"epsilon_low {low:g}, epsilon_high {high:g}: the clip never binds"
                + (" below" if high < _RATIO_NEVER else " above" if low < 1.0 else "")
                + f", for ratios lie above 0 and hardly ever beyond {_RATIO_NEVER + 1:g}.",
                "model.surrogate: epsilon 0.1 to 0.3, or Unclipped if no clip is wanted",
            )
        elif level == "sequence" and min(low, high) > _SEQUENCE_CLIP:
            yield warning(
                "clip",
                f"epsilon {low:g} / {high:g} on the ratio of whole rows, a geometric mean that stays within some "
                "thousandths of 1: the clip practically never binds.",
                "model.surrogate: epsilon_low 3e-4, epsilon_high 4e-4 (GSPO), or model.ratio_level: token",
            )
        elif level == "token" and max(low, high) < _TOKEN_CLIP:
            yield warning(
                "clip",
                f"epsilon {low:g} / {high:g} on ratios of tokens: after the first update nearly all are stopped.",
                "model.surrogate: epsilon 0.1 to 0.3, or model.ratio_level: sequence",
            )
    if isinstance(surrogate, TruncatedIS) and surrogate.cap > 50.0:
        yield warning("clip", f"a cap of {surrogate.cap:g} never binds.", "model.surrogate.cap: 1 to 10")
    if isinstance(surrogate, SmoothedSurrogate) and module.alpha_controller is None:
        if surrogate.alpha >= 0.9:
            yield warning(
                "alpha",
                f"alpha {surrogate.alpha:g} leaves {1 - surrogate.alpha:.2g} of the gradient.",
                "model.surrogate.alpha: 0.1 to 0.5",
            )
        elif surrogate.alpha == 0.0 and isinstance(surrogate, PSPO):
            yield note("alpha", "alpha 0: PSPO without smoothing is Unclipped.", "model.surrogate.alpha: above 0")
    if isinstance(module.aggregation, FixedLength) and module.aggregation.max_tokens != module.sampling.max_new_tokens:
        yield note(
            "aggregation",
            f"FixedLength divides by {module.aggregation.max_tokens} tokens, completions have up to "
            f"{module.sampling.max_new_tokens}: this scales the gradient.",
            f"model.aggregation.max_tokens: {module.sampling.max_new_tokens}",
        )


def check_kl(subject: Subject) -> Iterator[Finding]:
    """Look at the KL term, its reference and the entropy bonus."""
    module, kl_coef = subject.module, subject.module.objective.kl.coef
    chosen = str((subject.settings["model"]["kl"].get("estimator") or {}).get("class_path", "")).rpartition(".")[2]
    if kl_coef == 0.0 and chosen not in ("", "K3"):
        yield warning(
            "kl",
            f"model.kl.estimator is {chosen}, but model.kl.coef is 0: there is no KL term.",
            "model.kl.coef: above 0",
        )
    if kl_coef > 1.0:
        yield warning("kl", f"kl_coef {kl_coef:g}: the KL term outweighs any reward.", "model.kl.coef: 0.001 to 0.1")
    elif kl_coef > 0.0:
        where = (
            "the base under the adapters, at no further memory"
            if module.policy.lora is not None
            else "a copy of the model, held beside it"
        )
        yield note("kl", f"kl_coef {kl_coef:g}: the reference policy is {where}; every row enters each update.")
    if module.objective.entropy_coef > 0.1:
        yield warning(
            "entropy_coef",
            f"an entropy bonus of {module.objective.entropy_coef:g} a token: the policy is paid for noise.",
            "model.entropy_coef: at most 0.01",
        )


def check_optimizer(subject: Subject, parameters: int) -> Iterator[Finding]:
    """Look at the learning rate over the run.

    Args:
        subject: The run.
        parameters: Of the model.
    """
    module = subject.module
    try:
        group = module.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    except ValueError as refusal:
        yield error("lr", f"the optimiser refuses its settings: {refusal}.", "model.optimizer")
        return
    optimizer = type(module.optimizer([torch.nn.Parameter(torch.zeros(1))])).__name__
    rate, total = float(group["lr"]), subject.data.num_rollouts * subject.updates_per_rollout
    count = min(total, subject.rollouts * subject.updates_per_rollout)
    step = max(1, count // _FACTORS)
    factors = [module.lr_schedule(update, total) for update in range(0, count, step)]
    peak, moved = rate * max(factors, default=0.0), rate * sum(factors) * step
    if peak <= 0.0:
        yield error("lr", "the learning rate is 0 in every update: no weight moves.", "model.optimizer.lr: above 0")
        return
    adaptive = "betas" in group
    largest = 3e-3 if module.policy.lora is not None or parameters < SMALL_MODEL else 2e-5
    if adaptive and peak > largest:
        usual = "1e-5 to 2e-4" if module.policy.lora is not None else "1e-7 to 5e-6"
        report = error if peak > 30 * largest else warning
        yield report(
            "lr",
            f"a learning rate of {peak:g} with {optimizer}: too large for {parameters / 1e6:,.3g} M parameters; such a "
            "run diverges or forgets.",
            f"model.optimizer.lr: {usual if parameters >= SMALL_MODEL else 'at most 1e-3'}",
        )
    elif not adaptive and peak > 1.0:
        yield warning("lr", f"a learning rate of {peak:g} with {optimizer}: very large.", "model.optimizer.lr: below 1")
    elif adaptive and moved < 1e-6:
        yield warning(
            "lr",
            f"a learning rate of {peak:g} over {count} updates: no weight can move by more than about "
            f"{moved:.1g} in the whole run.",
            "model.optimizer.lr: larger, or data.num_rollouts: more",
        )
    else:
        yield fine("lr", f"{optimizer}, up to {peak:g}; {count} updates.")
    if count < int(getattr(module.lr_schedule, "warmup_updates", 0)):
        yield warning(
            "lr_schedule",
            f"the warm-up is longer than the run: the learning rate reaches {max(factors):.0%} of {rate:g}.",
            f"model.lr_schedule.warmup_updates: well below {count}",
        )
    decay = float(group.get("weight_decay") or 0.0)
    if decay * moved > 0.01 or decay > 0.5:
        yield warning(
            "weight_decay",
            f"weight decay {decay:g} shrinks every weight by {min(1.0, decay * moved):.2g} of itself over the run, "
            "whatever the reward.",
            "model.optimizer.weight_decay: 0 to 0.1",
        )
    if adaptive and float(group.get("eps", 0.0)) > 1e-5:
        yield warning(
            "optimizer",
            f"an epsilon of {group['eps']:g} is above most gradients: {optimizer} then hardly adapts.",
            "model.optimizer.eps: 1e-8",
        )


def check_reward(subject: Subject) -> Iterator[Finding]:
    """Hold the reward against made-up completions: a right one must be worth more than a wrong one."""
    module = subject.module
    texts = {
        "right": ("2 + 2 = 4\n#### 4", "So it is \\boxed{4}.", "The answer is 4."),
        "wrong": ("2 + 2 = 5\n#### 5", "So it is \\boxed{5}.", "The answer is 5."),
        "without an answer": ("I do not know it.", "Let us see", ""),
    }
    problem = Problem("made-up", "What is 2 + 2?", "4")
    samples = [
        Sample(problem, text, grade(text, "4", module.grader.mode), False, 8)
        for said in texts.values()
        for text in said
    ]
    try:
        values, _ = module.reward.breakdown(samples)
    except Exception as failure:  # a user's function may do anything, and its message is what the user needs
        logger.info("The reward failed on made-up completions.", exc_info=True)
        yield error("reward", f"the reward fails on a made-up group: {failure}.", "model.reward")
        return
    best = {kind: max(values[3 * place : 3 * place + 3]) for place, kind in enumerate(texts)}
    said = ", ".join(f"{kind} {value:g}" for kind, value in best.items())
    right, other = best["right"], max(best["wrong"], best["without an answer"])
    if max(values) == min(values):
        yield warning(
            "reward",
            f"the reward is {values[0]:g} for right, wrong and missing answers alike: it may never tell them apart.",
            "model.reward: a Correctness term with correct above wrong",
        )
    elif right < other:
        yield error("reward", f"a right answer is paid less than another: {said}.", "model.reward: its values, weights")
    elif right == other:
        yield warning(
            "reward",
            f"a right answer is paid no more than another: {said}.",
            "model.reward: a Correctness term with correct above wrong",
        )
    else:
        yield fine("reward", f"best values on made-up completions: {said}.")
    wrong = values[3:6]
    if right > other and max(wrong) != min(wrong):
        yield note(
            "reward",
            f"wrong answers are paid between {min(wrong):g} and {max(wrong):g} by their form: in a group without a "
            "right answer that becomes the whole advantage.",
        )
    yield from _lengths(subject)


def _lengths(subject: Subject) -> Iterator[Finding]:
    limit = subject.module.sampling.max_new_tokens
    for term, weight in parts(subject.module.reward):
        if isinstance(term, SoftOverlong) and weight and term.max_tokens > limit:
            never = term.max_tokens - term.buffer >= limit
            yield (warning if never else note)(
                "length_reward",
                f"SoftOverlong begins at {term.max_tokens - term.buffer} tokens and is whole at {term.max_tokens}; "
                f"completions end at {limit}" + (": it never acts." if never else "."),
                f"model.reward: SoftOverlong max_tokens at most {limit}",
            )
        if isinstance(term, TargetLength) and weight and term.tokens > limit:
            yield warning(
                "length_reward",
                f"TargetLength wants {term.tokens} tokens, completions end at {limit}.",
                f"model.reward: TargetLength tokens below {limit}",
            )
