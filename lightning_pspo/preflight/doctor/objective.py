"""Check objective, optimiser and reward before the first rollout."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch

from lightning_pspo.grading import grade
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.subject import Subject
from lightning_pspo.training.rules import objections
from lightning_pspo.types import Problem, Sample

_log = logging.getLogger(__name__)

SMALL_MODEL = 50_000_000
"""Parameters below which learning rates are far larger: the quickstart's tiny policy trains at 1e-4."""

_FACTORS = 10_000  # largest number of values of the schedule that are computed
_REPORTS = {"refused": error, "warning": warning, "note": note}
_COMPLETIONS = {
    "right": ("20 + 22 = 42\n#### 42", "So it is \\boxed{42}.", "The answer is 42."),
    "wrong": ("20 + 22 = 52\n#### 52", "So it is \\boxed{52}.", "The answer is 52."),
    "without an answer": ("I do not know it.", "Let us see", ""),
}


def check_rules(subject: Subject) -> Iterator[Finding]:
    """Apply the rules of ``training.rules``, which ``fit`` applies too."""
    module, updates = subject.module, subject.steps_per_rollout
    names = set()
    for objection in objections(module.choices(module.optimizer([torch.nn.Parameter(torch.zeros(1))]))):
        names.add(objection.rule)
        yield _REPORTS[objection.level](objection.rule, objection.text, objection.mend)
    if "updates_per_rollout" not in names:
        yield fine("updates_per_rollout", f"{updates} updates per rollout, {updates * subject.rollouts} in the run.")
    if "group_size" not in names:
        yield fine("group_size", f"{module.group_size} completions per prompt.")


def check_objective(subject: Subject) -> Iterator[Finding]:
    """Check the size of mini-batches and the KL term."""
    module = subject.module
    rows = subject.data.prompts_per_rollout * module.group_size
    if module.minibatches_per_rollout > rows:
        text = f"{module.minibatches_per_rollout} mini-batches of a rollout of {rows} rows: the run is refused."
        yield error("minibatches_per_rollout", text, f"model.minibatches_per_rollout: at most {rows}")
    elif rows / module.minibatches_per_rollout < module.group_size:
        yield warning(
            "minibatches_per_rollout",
            f"a mini-batch has {rows / module.minibatches_per_rollout:.1f} rows, less than one group of "
            f"{module.group_size}: an update sees only some of the completions that are compared.",
            f"model.minibatches_per_rollout: at most {subject.data.prompts_per_rollout}",
        )
    kl = module.objective.kl
    estimator = str(((subject.settings["model"].get("kl") or {}).get("estimator") or {}).get("class_path", ""))
    name = estimator.rpartition(".")[2]
    if kl.coef == 0.0 and name not in ("", "K3"):
        yield warning(
            "kl",
            f"model.kl.estimator is {name}, but model.kl.coef is 0: there is no KL term.",
            "model.kl.coef: above 0",
        )
    elif kl.coef > 0.0:
        reference = "the base under the adapters, at no extra memory" if module.policy.lora else "a copy of the model"
        yield note("kl", f"kl.coef {kl.coef:g}: the reference policy is {reference}; every row enters each update.")


def check_optimizer(subject: Subject) -> Iterator[Finding]:
    """Check the learning rate over the run."""
    module = subject.module
    try:
        optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(1))])
    except ValueError as refusal:
        yield error("lr", f"the optimiser refuses its settings: {refusal}.", "model.optimizer")
        return
    group, name = optimizer.param_groups[0], type(optimizer).__name__
    rate, total = float(group["lr"]), subject.data.num_rollouts * subject.steps_per_rollout
    count = min(total, subject.rollouts * subject.steps_per_rollout)
    step = max(1, count // _FACTORS)
    factors = [module.lr_schedule(update, total) for update in range(0, count, step)]
    peak, moved = rate * max(factors, default=0.0), rate * sum(factors) * step
    if peak <= 0.0:
        yield error("lr", "the learning rate is 0 in every update: no weight moves.", "model.optimizer.lr: above 0")
        return
    yield _learning_rate(subject, name, peak, moved, count, adaptive="betas" in group)
    if count < int(getattr(module.lr_schedule, "warmup_updates", 0)):
        text = f"the warm-up is longer than the run: the learning rate reaches {max(factors):.0%} of {rate:g}."
        yield warning("lr_schedule", text, f"model.lr_schedule.warmup_updates: well below {count}")
    decay = float(group.get("weight_decay") or 0.0)
    if decay * moved > 0.01 or decay > 0.5:
        text = f"weight decay {decay:g} shrinks every weight by {min(1.0, decay * moved):.2g} of itself over the run."
        yield warning("weight_decay", text, "model.optimizer.weight_decay: 0 to 0.1")
    if "betas" in group and float(group.get("eps", 0.0)) > 1e-5:
        text = f"an epsilon of {group['eps']:g} is above most gradients: {name} then hardly adapts."
        yield warning("optimizer", text, "model.optimizer.eps: 1e-8")


def _learning_rate(subject: Subject, name: str, peak: float, moved: float, count: int, *, adaptive: bool) -> Finding:
    lora, size = subject.module.policy.lora is not None, subject.parameters
    small = size < SMALL_MODEL
    largest = 3e-3 if lora or small else 2e-5
    if adaptive and peak > largest:
        large = "1e-5 to 2e-4" if lora else "1e-7 to 5e-6"
        return (error if peak > 30 * largest else warning)(
            "lr",
            f"a learning rate of {peak:g} with {name} is too large for {size / 1e6:,.3g} M parameters: such a run "
            "diverges or forgets.",
            f"model.optimizer.lr: {'at most 1e-3' if small else large}",
        )
    if not adaptive and peak > 1.0:
        return warning("lr", f"a learning rate of {peak:g} with {name} is very large.", "model.optimizer.lr: below 1")
    if adaptive and moved < 1e-6:
        text = f"a learning rate of {peak:g} over {count} updates: no weight can move by more than about {moved:.1g}."
        return warning("lr", text, "model.optimizer.lr: larger, or data.num_rollouts: more")
    return fine("lr", f"{name}, up to {peak:g}; {count} updates.")


def check_reward(subject: Subject) -> Iterator[Finding]:
    """Check the reward on made-up completions: a right one must earn more than a wrong one."""
    problem, mode = Problem("made-up", "What is 20 + 22?", "42"), subject.module.grader.mode
    texts = [text for group in _COMPLETIONS.values() for text in group]
    samples = [Sample(problem, text, grade(text, problem.answer, mode), False, 8) for text in texts]
    try:
        values, _ = subject.module.reward.breakdown(samples)
    except Exception as failure:  # a user's function may raise anything
        _log.info("The reward failed on made-up completions.", exc_info=True)
        yield error("reward", f"the reward fails on made-up completions: {failure}.", "model.reward")
        return
    best = {kind: max(values[3 * index : 3 * index + 3]) for index, kind in enumerate(_COMPLETIONS)}
    measured = ", ".join(f"{kind} {value:g}" for kind, value in best.items())
    right, other = best["right"], max(best["wrong"], best["without an answer"])
    change = "model.reward: a Correctness term with correct above wrong"
    if max(values) == min(values):
        yield warning("reward", f"the reward is {values[0]:g} for right, wrong and missing answers alike.", change)
    elif right < other:
        text = f"a right answer earns less than another: {measured}."
        yield error("reward", text, "model.reward: its values and weights")
    elif right == other:
        yield warning("reward", f"a right answer earns no more than another: {measured}.", change)
    else:
        yield fine("reward", f"best values on made-up completions: {measured}.")
    wrong = values[3:6]
    if right > other and max(wrong) != min(wrong):
        yield note(
            "reward",
            f"wrong answers earn between {min(wrong):g} and {max(wrong):g} by their form: in a group without a right "
            "answer that becomes the whole advantage.",
        )
