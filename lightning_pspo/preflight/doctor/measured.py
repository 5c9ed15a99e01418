"""What the probe's completions, rewards and updates say."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from lightning_pspo.grading import Verdict, extract
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.probe import Observed
from lightning_pspo.preflight.doctor.subject import Subject, parts, percent
from lightning_pspo.preflight.doctor.tokens import turn_ends
from lightning_pspo.rewards import Correctness
from lightning_pspo.statistics import share_interval

FEW = 8
"""Groups below which a share is said and not judged."""


def check_signal(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Look at the solve rate, and at how many groups have a signal."""
    module, size = subject.module, subject.module.group_size
    groups = len(seen.rewards)
    shares = [
        fmean([float(sample.grade.correct) for sample in seen.samples[start : start + size]])
        for start in range(0, len(seen.samples), size)
    ]
    solved = share_interval(shares)
    said = (
        f"{percent(solved.value)} of completions are right (95 % interval {percent(solved.low)} to "
        f"{percent(solved.high)}; {groups} prompts, {len(seen.samples)} completions)"
    )
    by_answer = any(isinstance(term, Correctness) and weight for term, weight in parts(module.reward))
    if solved.value == 0.0 and by_answer:
        yield (error if groups >= FEW else warning)(
            "solve_rate", f"{said}: nothing to learn from.", "easier problems, a stronger model, or another prompt"
        )
    elif solved.low > 0.95 and by_answer:
        yield warning("solve_rate", f"{said}: little is left to learn.", "data.train: harder problems")
    else:
        yield fine("solve_rate", f"{said}.")
    equal = [float(max(group) == min(group)) for group in seen.rewards]
    zero = share_interval(equal)
    useful = 1.0 - zero.value
    expected = subject.data.prompts_per_rollout * useful
    said = (
        f"{percent(zero.value)} of {groups} groups have equal rewards and no gradient (95 % interval "
        f"{percent(zero.low)} to {percent(zero.high)}); a rollout of {subject.data.prompts_per_rollout} prompts has "
        f"{expected:.1f} useful groups, and {percent(1 - zero.value**subject.data.prompts_per_rollout)} of rollouts "
        "have any"
    )
    ways = "model.group_size: more; problems of middling difficulty; model.refill_rounds: 1 or more"
    if zero.value == 1.0:
        yield (error if groups >= FEW else warning)("zero_variance", f"{said}: nothing moves the weights.", ways)
    elif zero.value > 0.8:
        yield warning("zero_variance", f"{said}.", ways)
    else:
        yield fine("zero_variance", f"{said}.")


def check_lengths(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Look at how long completions are, and at what ends them."""
    policy, limit = subject.module.policy, subject.module.sampling.max_new_tokens
    tokenizer = policy.tokenizer
    lengths = [sample.length_tokens for sample in seen.samples]
    cut = fmean([float(sample.truncated) for sample in seen.samples])
    said = (
        f"{percent(cut)} of completions are cut at {limit} tokens; mean length {fmean(lengths):.0f}, longest "
        f"{max(lengths)}"
    )
    if cut == 1.0 and len(lengths) >= FEW:
        yield error(
            "truncation",
            f"{said}: the model never ends a completion.",
            "model.sampling.max_new_tokens: more; or the end-of-sequence ids (see eos)",
        )
    elif cut > 0.2:
        extra = " With mask_truncated these rows are left out of the loss." if subject.module.mask_truncated else ""
        yield warning("truncation", f"{said}.{extra}", f"model.sampling.max_new_tokens: more than {limit}")
    else:
        yield fine("truncation", f"{said}.")
    empty = fmean([float(not sample.completion.strip()) for sample in seen.samples])
    if empty > 0.2:
        yield warning(
            "empty", f"{percent(empty)} of completions are empty.", "data.template or the chat template: see the prompt"
        )
    total = sum(seen.ends.values())
    counted = ", ".join(
        f"{tokenizer.convert_ids_to_tokens(id_)!r} ({id_}) ended {count}" for id_, count in seen.ends.most_common()
    )
    if total:
        idle = [str(tokenizer.convert_ids_to_tokens(id_)) for id_ in policy.eos_ids if not seen.ends[id_]]
        yield fine(
            "eos_emitted", f"of {len(lengths)} completions {counted}" + (f"; never {', '.join(idle)}." if idle else ".")
        )
    names = turn_ends(tokenizer)
    for id_, count in seen.strays.items():
        if count:
            yield (error if count > 0.2 * len(lengths) else warning)(
                "eos_emitted",
                f"{names[id_]!r} ({id_}) stands in {count} of {len(lengths)} completions and does not end them.",
                f"eos_token_id in the model's generation_config.json: add {id_}",
            )


def check_answers(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Look at what the grader could read."""
    module, total = subject.module, len(seen.samples)
    by_verdict = {verdict: [one for one in seen.samples if one.grade.verdict is verdict] for verdict in Verdict}
    missing = by_verdict[Verdict.NO_ANSWER]
    share = len(missing) / total
    said = f"no answer is found in {percent(share)} of completions ({module.grader.mode} mode)"
    other = sum(extract(one.completion, "lenient")[0] is not None for one in missing)
    if module.grader.mode == "strict" and other > 0.2 * total:
        yield warning(
            "no_answer",
            f"{said}; in {percent(other / total)} the lenient mode finds one: answers do not stand where the strict "
            "mode looks, behind #### or in \\boxed{}.",
            "data.system_prompt: ask for #### or \\boxed{}, or model.grader.mode: lenient",
        )
    elif share > 0.3:
        yield warning("no_answer", f"{said}.", "data.system_prompt: say how the answer is to be given")
    else:
        yield fine("no_answer", f"{said}.")
    undecided = len(by_verdict[Verdict.ERROR]) + len(by_verdict[Verdict.TIMEOUT])
    if undecided > 0.02 * total:
        yield warning(
            "grader",
            f"the grader could not decide on {percent(undecided / total)} of completions.",
            "model.grader.deadline_s, or the reference answers",
        )
    twins = sum(
        len(group) - len({one.completion for one in group})
        for start in range(0, total, module.group_size)
        if (group := seen.samples[start : start + module.group_size])
    )
    if twins > 0.5 * total and not all(one.length_tokens <= 4 for one in seen.samples):
        yield warning(
            "diversity",
            f"{percent(twins / total)} of completions repeat another of their group word for word.",
            "model.sampling.temperature: higher, or model.sampling.top_p: nearer to 1",
        )


def check_rewards(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Look at the rewards that were paid."""
    values = [value for group in seen.rewards for value in group]
    low, high = min(values), max(values)
    if low == high:
        yield (error if len(values) >= FEW else warning)(
            "reward",
            f"all {len(values)} completions have the reward {low:g}: there is nothing to prefer.",
            "model.reward",
        )
    else:
        yield fine("reward", f"rewards from {low:g} to {high:g}, mean {fmean(values):.3f}.")
    for name, term in seen.terms.items():
        if len(seen.terms) > 1 and min(term) == max(term):
            yield note(
                "reward", f"the term {name!r} is {term[0]:g} for every completion.", "model.reward: is it needed?"
            )


def check_steps(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Look at how far the updates moved the policy."""
    bound = subject.module.max_grad_norm
    if seen.norms:
        mean = fmean(seen.norms)
        if bound is not None and bound < 0.01 * mean:
            yield warning(
                "max_grad_norm",
                f"gradient norms are about {mean:.3g}, the bound is {bound:g}: each step is cut to under a hundredth.",
                "model.max_grad_norm: 1",
            )
        elif bound is not None and bound > 1000 * max(seen.norms):
            yield note("max_grad_norm", f"the bound {bound:g} never binds: norms are about {mean:.3g}.")
        else:
            yield fine("max_grad_norm", f"gradient norms are about {mean:.3g}, the bound is {bound}.")
    if seen.divergences and subject.updates_per_rollout > 1:
        largest = max(seen.divergences)
        said = (
            f"a rollout's updates move the policy by {largest:.2g} nats a token at most, at learning rates up to "
            f"{max(seen.rates):.2g}; ratios from {seen.ratios[0]:.3g} to {seen.ratios[1]:.3g}"
        )
        if largest > 0.1:
            yield warning("divergence", f"{said}: too far.", "model.optimizer.lr: smaller")
        else:
            yield fine("divergence", f"{said}.")
