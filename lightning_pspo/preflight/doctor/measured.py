"""Check the probe's completions, rewards and updates."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from lightning_pspo.grading import Verdict, extract
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.observed import Observed
from lightning_pspo.preflight.doctor.subject import Subject, percent
from lightning_pspo.preflight.doctor.tokens import turn_ends
from lightning_pspo.rewards import Correctness
from lightning_pspo.statistics import Estimate, share_interval
from lightning_pspo.training.rules import weighted_terms

FEW = 8
"""Number of groups, or of completions, below which an error is only a warning."""
WIDE = 0.4
"""Width of a solve rate's interval above which the rate counts as unknown."""

_MEASURE = "the doctor's --limit-prompts and --seconds: more"


def _with_interval(share: Estimate) -> str:
    return f"{percent(share.value)} (95 % interval {percent(share.low)} to {percent(share.high)})"


def check_signal(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Check the solve rate and the share of groups with a gradient."""
    size, groups = subject.module.group_size, len(seen.rewards)
    correct = [float(sample.grade.correct) for sample in seen.samples]
    solved = share_interval([fmean(correct[start : start + size]) for start in range(0, len(correct), size)])
    measured = f"{_with_interval(solved)} of completions are right; {groups} prompts, {len(seen.samples)} completions"
    by_answer = any(isinstance(term, Correctness) and weight for term, weight in weighted_terms(subject.module.reward))
    if solved.value == 0.0 and by_answer:
        yield (error if groups >= FEW else warning)(
            "solve_rate", f"{measured}: nothing to learn from.", "easier problems, a stronger model, or another prompt"
        )
    elif solved.high - solved.low > WIDE:
        yield warning("solve_rate", f"{measured}: too few to tell the solve rate.", _MEASURE)
    elif solved.low > 0.95 and by_answer:
        yield warning("solve_rate", f"{measured}: little is left to learn.", "data.train: harder problems")
    else:
        yield fine("solve_rate", f"{measured}.")
    zero = share_interval([float(max(group) == min(group)) for group in seen.rewards])
    prompts = subject.data.prompts_per_rollout
    measured = (
        f"{_with_interval(zero)} of {groups} groups have equal rewards and so no gradient; a rollout of {prompts} "
        f"prompts has {prompts * (1 - zero.value):.1f} useful groups, and {percent(1 - zero.value**prompts)} of "
        "rollouts have any"
    )
    change = "model.group_size: more; problems of medium difficulty; model.refill_rounds: 1 or more"
    if zero.value == 1.0:
        yield (error if groups >= FEW else warning)("zero_variance", f"{measured}: nothing moves the weights.", change)
    elif zero.value > 0.8:
        yield warning("zero_variance", f"{measured}.", change)
    elif groups < FEW:
        yield warning("zero_variance", f"{measured}: too few groups to tell.", _MEASURE)
    else:
        yield fine("zero_variance", f"{measured}.")


def check_lengths(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Check how long completions are and which token ends them."""
    policy, limit, total = subject.module.policy, subject.max_new_tokens, len(seen.samples)
    tokenizer = policy.tokenizer
    lengths = [sample.length_tokens for sample in seen.samples]
    cut = fmean(float(sample.truncated) for sample in seen.samples)
    measured = (
        f"{percent(cut)} of completions are cut at {limit} tokens; mean length {fmean(lengths):.0f}, longest "
        f"{max(lengths)}"
    )
    if cut == 1.0 and total >= FEW:
        yield error(
            "truncation",
            f"{measured}: the model never ends a completion.",
            "model.sampling.max_new_tokens: more; or the end-of-sequence ids (see eos)",
        )
    elif cut > 0.2:
        extra = " With mask_truncated these rows are left out of the loss." if subject.module.mask_truncated else ""
        yield warning("truncation", f"{measured}.{extra}", f"model.sampling.max_new_tokens: more than {limit}")
    else:
        yield fine("truncation", f"{measured}.")
    yield from _paid_for_cut_text(subject, seen)
    empty = fmean(float(not sample.completion.strip()) for sample in seen.samples)
    if empty > 0.2:
        yield warning("empty", f"{percent(empty)} of completions are empty.", "data.prompt: template, chat_template")
    if seen.ends:
        counts = ", ".join(
            f"{tokenizer.convert_ids_to_tokens(id_)!r} ({id_}) ended {count}" for id_, count in seen.ends.most_common()
        )
        unused = [str(tokenizer.convert_ids_to_tokens(id_)) for id_ in policy.eos_ids if not seen.ends[id_]]
        never = f"; never {', '.join(unused)}" if unused else ""
        yield fine("eos_emitted", f"of {total} completions {counts}{never}.")
    names = turn_ends(subject)
    for id_, count in seen.strays.items():
        if count:
            yield (error if count > 0.2 * total else warning)(
                "eos_emitted",
                f"{names[id_]!r} ({id_}) occurs in {count} of {total} completions and does not end them.",
                f"eos_token_id in the model's generation_config.json: add {id_}",
            )


def _paid_for_cut_text(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Check whether completions that were cut count as right, or earn more than those that end."""
    rewards = [value for group in seen.rewards for value in group]
    right = [sample.truncated for sample in seen.samples if sample.grade.correct]
    earned: dict[bool, list[float]] = {True: [], False: []}
    for sample, reward in zip(seen.samples, rewards, strict=True):
        earned[sample.truncated].append(reward)
    change = f"model.sampling.max_new_tokens: more than {subject.max_new_tokens}, or model.grader.cut_off: none"
    if right and (share := fmean(map(float, right))) > 0.1:
        yield warning(
            "truncated_correct",
            f"{sum(right)} of {len(right)} right completions ({percent(share)}) were cut before they ended: the reward "
            "pays for text without an end, and training moves to the token limit.",
            change,
        )
    elif min(map(len, earned.values())) >= FEW and fmean(earned[True]) > fmean(earned[False]):
        yield warning(
            "truncated_correct",
            f"completions that were cut earn {fmean(earned[True]):.3g} on average, those that end "
            f"{fmean(earned[False]):.3g}: training moves to the token limit.",
            change,
        )
    elif earned[True]:
        yield fine("truncated_correct", f"{sum(right)} of {len(right)} right completions were cut before they ended.")


def check_answers(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Check how many answers the grader could read and how different the completions are."""
    module, total = subject.module, len(seen.samples)
    missing = [sample for sample in seen.samples if sample.grade.verdict is Verdict.NO_ANSWER]
    measured = f"{percent(len(missing) / total)} of completions have no answer ({module.grader.mode} mode)"
    lenient = sum(extract(sample.completion, "lenient")[0] is not None for sample in missing)
    if module.grader.mode == "strict" and lenient > 0.2 * total:
        yield warning(
            "no_answer",
            f"{measured}; in {percent(lenient / total)} only the lenient mode finds an answer: it is not after #### or "
            "in \\boxed{}, where the strict mode looks.",
            "data.prompt.system_prompt: ask for #### or \\boxed{}, or model.grader.mode: lenient",
        )
    elif len(missing) > 0.3 * total:
        yield warning("no_answer", f"{measured}.", "data.prompt.system_prompt: say how to give the answer")
    else:
        yield fine("no_answer", f"{measured}.")
    undecided = sum(sample.grade.verdict in (Verdict.ERROR, Verdict.TIMEOUT) for sample in seen.samples)
    if undecided > 0.02 * total:
        text = f"the grader could not decide on {percent(undecided / total)} of completions."
        yield warning("grader", text, "model.grader.deadline_s, or the reference answers")
    completions = [sample.completion for sample in seen.samples]
    groups = [completions[start : start + module.group_size] for start in range(0, total, module.group_size)]
    twins = total - sum(len(set(group)) for group in groups)
    if twins > 0.5 * total and any(sample.length_tokens > 4 for sample in seen.samples):
        text = f"{percent(twins / total)} of completions repeat another one of their group word for word."
        yield warning("diversity", text, "model.sampling.temperature: higher, or model.sampling.top_p: closer to 1")


def check_rewards(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Check the rewards of the probe's completions."""
    values = [value for group in seen.rewards for value in group]
    low, high = min(values), max(values)
    if low == high:
        text = f"all {len(values)} completions have the reward {low:g}: none is preferred."
        yield (error if len(values) >= FEW else warning)("reward", text, "model.reward")
    else:
        yield fine("reward", f"rewards from {low:g} to {high:g}, mean {fmean(values):.3f}.")
    for name, term in seen.terms.items():
        if len(seen.terms) > 1 and min(term) == max(term):
            text = f"the term {name!r} is {term[0]:g} for every completion."
            yield note("reward", text, "model.reward: is it needed?")


def check_steps(subject: Subject, seen: Observed) -> Iterator[Finding]:
    """Check how far the updates moved the policy."""
    bound = subject.module.max_grad_norm
    if seen.norms:
        mean = fmean(seen.norms)
        if bound is not None and bound < 0.01 * mean:
            text = f"gradient norms are about {mean:.3g}, the bound {bound:g} cuts each step to under a hundredth."
            yield warning("max_grad_norm", text, "model.max_grad_norm: 1")
        elif bound is not None and bound > 1000 * max(seen.norms):
            yield note("max_grad_norm", f"the bound {bound:g} never binds: norms are about {mean:.3g}.")
        else:
            yield fine("max_grad_norm", f"gradient norms are about {mean:.3g}, the bound is {bound}.")
    if seen.divergences and subject.steps_per_rollout > 1:
        largest = max(seen.divergences)
        measured = (
            f"a rollout's updates move the policy by up to {largest:.2g} nats per token, at learning rates up to "
            f"{max(seen.rates):.2g}; ratios from {seen.ratios[0]:.3g} to {seen.ratios[1]:.3g}"
        )
        if largest > 0.1:
            yield warning("divergence", f"{measured}: too far.", "model.optimizer.lr: smaller")
        else:
            yield fine("divergence", f"{measured}.")
