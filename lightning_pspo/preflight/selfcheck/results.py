"""Name the checks, what to do when one fails, and how far values may be off."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from lightning_pspo.errors import InputError
from lightning_pspo.progress import WORK, begin


class Check(StrEnum):
    """The checks, by their names in the table."""

    CONSISTENT = "model: log-probs and greedy tokens"
    MICRO_BATCHES = "gradient: micro-batches"
    RANKS = "gradient: ranks"
    TOKENS = "completions on two ranks"
    FIRST = "ratio at the first update"
    AGAIN = "log-probs of a second pass"
    GREEDY = "engine: greedy tokens"
    SAMPLED = "engine: sampled tokens, same noise"
    DRAWN = "engine: what it draws"
    REPORTED = "engine: its log-probs"
    TRAINING = "training log-probs"
    SAME_GRADIENT = "bits: gradient of a second pass"
    SAME_TOKENS = "bits: a second rollout"
    ALONE = "bits: each prompt alone"
    LOADED = "checkpoint: logits after loading"
    STATE = "checkpoint: weights and optimiser state"
    EXPORTED = "export: logits of the folder"


ADVICE: dict[str, str] = {
    Check.CONSISTENT: "`fit` refuses this model or engine at its start, for the same reason.",
    Check.MICRO_BATCHES: "does something take a mean over the rows or tokens of one pass? Sum up, and divide by the "
    "denominator that Aggregation gets; a surrogate must not depend on the size of its batch, and the model must not "
    "mix rows.",
    Check.RANKS: "an advantage, aggregation or surrogate that needs all ranks must reduce over them; then try "
    "--trainer.strategy ddp, which tells a broken objective from a broken strategy.",
    Check.TOKENS: "a completion must not depend on the rest of its batch: key the noise by prompt and completion.",
    Check.FIRST: "the behaviour log-probs must be those of the first update's own pass: what overrides "
    "PSPOModule.update or Objective?",
    Check.AGAIN: "the model is not a function of its tokens: is dropout or another random layer active in training?",
    Check.GREEDY: "the engine computes other logits than the model alone: compare dtype, attention and positions; "
    "--model.engine=GenerateEngine tells an engine from a model whose logits depend on padding or on its batch.",
    Check.SAMPLED: "the engine must draw by rollout.base.pick from logprobs.sampling_logits (temperature, then top_p) "
    "with row b * G + g of the noise; an engine with its own noise declares `uses_given_noise = False`.",
    Check.DRAWN: "the tokens do not come from the trained distribution: temperature, top_p, top_k, penalties?",
    Check.REPORTED: "log-probs must be those of the sampled tokens after temperature and top_p.",
    Check.TRAINING: "packing, padding or shared prompts do not suit this model: try "
    "--model.policy.share_prompts=false and another --model.policy.attn_implementation.",
    Check.SAME_GRADIENT: "an operation adds up in another order each time: does a class of your own draw or scatter?",
    Check.SAME_TOKENS: "the engine must draw from the given noise alone.",
    Check.LOADED: "the policy has state that is neither a parameter nor a persistent buffer, or changes what it loads.",
    Check.STATE: "what training changes must be in `state_dict`; see PSPOModule.state_dict for adapters.",
    Check.EXPORTED: "`lightning-pspo export` would refuse this policy: see its message.",
}
"""Check -> what to do if it fails."""


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    check: str  # name of the check, of ``ADVICE``
    measured: str  # the number that counts, with its unit or meaning
    limit: str  # the limit that it must keep
    passed: bool | None  # None for a check that was left out, where ``measured`` says why, or that only reports
    detail: str = ""  # how it was measured, where that varies; the traceback of an exception

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"advice": ADVICE.get(self.check, "")}


@dataclass(frozen=True)
class Tolerances:
    """How far values may be off that differ only by the order of floating-point additions."""

    gradient: float  # relative difference of two gradients
    logprob: float  # largest difference of two log-probs of a token, in nats
    mean_logprob: float  # mean absolute difference of log-probs
    gap: float  # difference of two logits at which greedy choices may differ
    mass: float  # distance in probability between the noise and another token at which sampled tokens may differ
    tokens: float  # least share of tokens that are the same on any number of ranks; one tie costs the rest of a row


FLOAT32 = Tolerances(gradient=1e-4, logprob=1e-3, mean_logprob=1e-4, gap=1e-3, mass=1e-4, tokens=0.75)
BFLOAT16 = Tolerances(gradient=0.25, logprob=1.0, mean_logprob=0.05, gap=0.5, mass=0.1, tokens=0.25)
"""Eight bits: a logit of 30 has an error of 0.1, and every layer rounds again. SmolLM2's gradient is off by 0.12."""


def tolerances_of(precision: str, dtype: str) -> Tolerances:
    """Return the tolerances for a precision of the trainer and a dtype of the policy.

    >>> tolerances_of("32-true", "float32").gradient, tolerances_of("32-true", "bfloat16").gradient
    (0.0001, 0.25)
    """
    return BFLOAT16 if "bf16" in precision or dtype == "bfloat16" else FLOAT32


def say(stage: str) -> None:
    """Show which part of the self-check runs."""
    WORK.stage = stage
    begin("")


def at_most(check: str, value: float, limit: float, detail: str = "") -> Result:
    """Return the result of a number that must not exceed ``limit``; nan fails.

    >>> at_most("distance", 0.5, 0.1).passed
    False
    """
    return Result(check, f"{value:.2g}", f"<= {limit:g}", bool(value <= limit), detail)


def left_out(check: str, reason: str) -> Result:
    """Return the result of a check that was left out."""
    return Result(check, reason, "", None)


def attempt(check: str, function: Callable[[], Sequence[Result]]) -> list[Result]:
    """Return the results of ``function``; an exception is a failure of the check, with the traceback as detail."""
    try:
        return list(function())
    except InputError as refusal:
        return [Result(check, str(refusal), "no refusal", False)]
    except Exception as error:  # a user's own class may raise anything
        first = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        return [Result(check, first, "no exception", False, "".join(traceback.format_exception(error)))]


def result_table(results: Sequence[Result]) -> Table:
    """Return the table for a terminal."""
    table = Table(box=SIMPLE)
    for heading in ("", "check", "measured", "limit"):
        table.add_column(heading, no_wrap=not heading)
    words = {True: "pass", False: "[bold red]FAIL[/]", None: "-"}
    for result in results:
        detail = "" if not result.detail or "\n" in result.detail else f"; {result.detail}"
        texts = (result.check, result.measured + detail, result.limit)
        table.add_row(words[result.passed], *(escape(text) for text in texts))
    return table


def explained(results: Sequence[Result]) -> list[str]:
    """Return the advice about each failure, and the tracebacks.

    >>> explained([at_most(Check.STATE, 0.5, 0.1, "in eight bits")])[0].endswith(ADVICE[Check.STATE])
    True
    """
    lines = []
    for result in results:
        if result.passed is False:
            is_traceback = "\n" in result.detail
            detail = f" ({result.detail})" if result.detail and not is_traceback else ""
            lines.append(f"FAIL {result.check}{detail}: {ADVICE.get(result.check, '')}")
            lines += [result.detail.rstrip()] if is_traceback else []
    return lines
