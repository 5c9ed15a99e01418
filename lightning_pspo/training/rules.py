"""Rules about the parts of a run: one table for what ``fit`` refuses and what the doctor reports.

A rule reads what a part declares in class attributes, never its class, so that a class of your own is treated like one
of this package once it declares the same attributes:

===================  ==================================================================
base class           attributes that rules read
===================  ==================================================================
``Surrogate``        ``ratio_levels``, ``ratio_bounds``, ``alpha``, ``alpha_only_scales``, ``weight_is_ratio``
``Aggregation``      ``constant_length``
``Advantage``        ``refillable``, ``sound_group_size``
``AlphaController``  ``needs_updates``
``Reward``           ``length_range``
``RolloutEngine``    ``uses_own_kernels``, ``min_temperature``
===================  ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from lightning_pspo.errors import InputError
from lightning_pspo.objective.advantages import Advantage
from lightning_pspo.objective.alpha import AlphaController
from lightning_pspo.objective.objective import Objective
from lightning_pspo.objective.surrogates import Aggregation
from lightning_pspo.rewards import Reward
from lightning_pspo.rollout import RolloutEngine
from lightning_pspo.training.settings import SamplingSettings

Level = Literal["refused", "warning", "note"]

_SCALE_FREE = ("Adam", "NAdam", "RAdam", "SparseAdam", "Adafactor", "RMSprop", "Lion", "PagedAdam", "Adagrad", "Rprop")
_MANY_UPDATES = 16  # after which PSPO and its control fell in studies, on a toy and on SmolLM2-135M
_LARGEST_RATIO = 10.0  # which a token's ratio hardly ever reaches
_LARGEST_ROW_BOUND = 0.05  # distance from 1 that a row's ratio, a geometric mean, hardly ever reaches
_SMALLEST_TOKEN_BOUND = 2e-3  # distance from 1 that nearly every token's ratio exceeds after one update


@dataclass(frozen=True)
class Objection:
    """What a rule has against the choices of a run."""

    # ``refused``: ``fit`` raises it. ``warning``: it probably is not the run that is wanted. ``note``: worth knowing.
    level: Level
    rule: str  # its name, stable: programs look for it
    text: str  # what is wrong, in one sentence that names the setting and its value
    # The setting to change and to what, such as ``model.ratio_level: token``; empty if nothing has to be done.
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.text} Set {self.mend}." if self.mend else self.text


_refused, _warning, _note = (partial(Objection, level) for level in get_args(Level))


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The choices of a run that rules are about; the attributes are settings of ``PSPOModule``."""

    objective: Objective  # surrogate, ratio level, KL term, entropy bonus and mismatch cap
    aggregation: Aggregation
    advantage: Advantage
    reward: Reward
    engine: RolloutEngine
    alpha_controller: AlphaController | None
    sampling: SamplingSettings
    group_size: int
    updates: int  # optimiser steps per rollout: passes times mini-batches
    refill_rounds: int
    max_grad_norm: float | None
    optimizer: str | None = None  # class name of the optimiser; None while it is not built


def objections(choices: Choices) -> Iterator[Objection]:
    """Yield what every rule has against ``choices``."""
    for rule in RULES:
        yield from rule(choices)


def refuse(choices: Choices) -> None:
    """Raise InputError with the first objection that refuses ``choices``."""
    for objection in objections(choices):
        if objection.level == "refused":
            raise InputError(str(objection))


def weighted_terms(reward: Reward, weight: float = 1.0) -> Iterator[tuple[Reward, float]]:
    """Yield a reward, or the terms that it sums up, each with its weight.

    >>> from lightning_pspo.rewards import GSM8KPaperReward
    >>> [(type(term).__name__, weight) for term, weight in weighted_terms(GSM8KPaperReward())]
    [('Correctness', 1.0), ('FormatMatch', 0.05), ('NoNumber', -0.2)]
    """
    terms, weights = getattr(reward, "terms", None), getattr(reward, "weights", None)
    if not isinstance(terms, Mapping) or not isinstance(weights, Mapping):
        yield reward, weight
        return
    for name, term in terms.items():
        yield from weighted_terms(term, weight * float(weights[name]))


# -- the rules ---------------------------------------------------------------------------------------------------------


def _level_suits_surrogate(choices: Choices) -> Iterator[Objection]:
    surrogate, level = choices.objective.surrogate, choices.objective.ratio_level
    if level not in surrogate.ratio_levels:
        text = f"`ratio_level` must be {' or '.join(surrogate.ratio_levels)} with {_name(surrogate)}, got {level}."
        yield _refused("ratio_level", text, f"model.ratio_level: {surrogate.ratio_levels[0]}")


def _controller_has_work(choices: Choices) -> Iterator[Objection]:
    controller, surrogate = choices.alpha_controller, choices.objective.surrogate
    if controller is None:
        return
    if surrogate.alpha is None:
        text = f"`alpha_controller` needs a surrogate with an alpha, got {_name(surrogate)}."
        yield _refused("alpha_controller", text, "model.surrogate: PSPO, or model.alpha_controller: null")
    if controller.needs_updates and choices.updates == 1:
        text = (
            f"`alpha_controller` {_name(controller)} needs more than one update per rollout, got 1: the ratio is "
            "always 1 and no divergence can be measured."
        )
        yield _refused("alpha_controller", text, "model.updates_per_rollout: 2")


def _refill_suits_advantage(choices: Choices) -> Iterator[Objection]:
    if choices.refill_rounds and not choices.advantage.refillable:
        text = (
            f"`refill_rounds` must be 0 with {_name(choices.advantage)}, got {choices.refill_rounds}: a group of equal "
            "total rewards has a gradient there, which refilling would throw away."
        )
        yield _refused("refill_rounds", text, "model.refill_rounds: 0")


def _rollouts_are_sampled(choices: Choices) -> Iterator[Objection]:
    temperature, top_p, least = choices.sampling.temperature, choices.sampling.top_p, choices.engine.min_temperature
    if temperature == 0.0:
        text = "`sampling.temperature` must be greater than 0, got 0.0: the completions of a group would all be equal."
        yield _refused("temperature", text, "model.sampling.temperature: 1.0")
    elif temperature < least:
        text = f"`sampling.temperature` must be at least {least:g} with {_name(choices.engine)}, got {temperature:g}."
        yield _refused("temperature", text, f"model.sampling.temperature: {least:g}")
    elif not 0.3 <= temperature <= 1.5:
        effect = "completions of a group are nearly alike" if temperature < 1.0 else "completions turn to noise"
        text = f"rollouts at temperature {temperature:g}: {effect}."
        yield _warning("temperature", text, "model.sampling.temperature: 0.6 to 1.2")
    if top_p < 0.5:
        yield _warning("top_p", f"rollouts from the nucleus of {top_p:g} only.", "model.sampling.top_p: 0.9 to 1")


def _ratio_leaves_one(choices: Choices) -> Iterator[Objection]:
    surrogate, text = choices.objective.surrogate, "One update per rollout: the importance ratio is always 1"
    if choices.updates == 1 and surrogate.weight_is_ratio:
        yield _note("updates_per_rollout", f"{text}.")
    elif choices.updates == 1:
        effect = "its bounds never act" if surrogate.alpha is None else "alpha only scales the gradient"
        yield _warning(
            "updates_per_rollout",
            f"{text}, so that {_name(surrogate)} is the plain policy gradient ({effect}).",
            "model.updates_per_rollout or model.minibatches_per_rollout: 2 or more",
        )


def _updates_are_few(choices: Choices) -> Iterator[Objection]:
    surrogate, held = choices.objective.surrogate, choices.objective.kl.coef > 0.0  # no run with a KL term fell
    unbounded = surrogate.alpha_only_scales or surrogate.weight_is_ratio
    if choices.updates >= _MANY_UPDATES and unbounded and not held:
        text = (
            f"{choices.updates} updates per rollout with {_name(surrogate)}, whose ratio nothing bounds, without a KL "
            "term: in docs/study.md such runs fell further than those with a clip."
        )
        mend = (
            "model.updates_per_rollout: 4 or fewer, or model.surrogate: Clip or PessimisticPSPO, or model.kl.coef: "
            "0.04, with which twelve updates held"
        )
        yield _warning("many_updates", text, mend)


def _alpha_survives_optimizer(choices: Choices) -> Iterator[Objection]:
    surrogate, optimizer = choices.objective.surrogate, str(choices.optimizer)
    constant = choices.alpha_controller is None and not choices.objective.needs_every_row
    if surrogate.alpha and surrogate.alpha_only_scales and constant and optimizer.startswith(_SCALE_FREE):
        text = f"a constant alpha hardly matters under {optimizer}, which cancels it: compare with Unclipped"
        yield _note("alpha_under_adam", f"{text} (docs/objective.md).")


def _bounds_act(choices: Choices) -> Iterator[Objection]:
    surrogate, level = choices.objective.surrogate, choices.objective.ratio_level
    low, high = surrogate.ratio_bounds
    distances = [abs(bound - 1.0) for bound in (low, high) if bound is not None]
    if not distances:
        return
    bounds = f"{_name(surrogate)} bounds the ratio to [{low or 0.0:g}, {math.inf if high is None else high:g}]"
    never = ["below"] * (low is not None and low <= 0.0) + ["above"] * (high is not None and high >= _LARGEST_RATIO)
    if never:
        text = f"{bounds}: this never binds {' and '.join(never)}, since ratios lie above 0 and hardly ever beyond 10."
        yield _warning("clip", text, "model.surrogate: bounds nearer to 1, or Unclipped for no bounds")
    elif level == "sequence" and min(distances) > _LARGEST_ROW_BOUND:
        text = f"{bounds}: the ratio of a whole row, a geometric mean, stays so near 1 that this hardly ever binds."
        yield _warning("clip", text, "model.surrogate: bounds of some 1e-4 (GSPO), or model.ratio_level: token")
    elif level == "token" and max(distances) < _SMALLEST_TOKEN_BOUND:
        text = f"{bounds} at token level: after the first update nearly all tokens are stopped."
        yield _warning("clip", text, "model.surrogate: bounds of 0.1 to 0.3, or model.ratio_level: sequence")


def _alpha_is_moderate(choices: Choices) -> Iterator[Objection]:
    surrogate, alpha = choices.objective.surrogate, choices.objective.surrogate.alpha
    if choices.alpha_controller is not None or alpha is None:
        return
    if alpha >= 0.9:
        text = f"alpha {alpha:g} leaves {1 - alpha:.2g} of the gradient."
        yield _warning("alpha", text, "model.surrogate.alpha: 0.1 to 0.5")
    elif alpha == 0.0 and surrogate.alpha_only_scales:
        text = f"alpha 0: {_name(surrogate)} without smoothing is Unclipped."
        yield _note("alpha", text, "model.surrogate.alpha: above 0")


def _group_is_large_enough(choices: Choices) -> Iterator[Objection]:
    size, sound = choices.group_size, choices.advantage.sound_group_size
    if size < sound:
        text = (
            f"groups of {size}: even at a solve rate of one half only {1 - 2 * 0.5**size:.0%} of them have a signal, "
            "and the mean that rewards are compared with comes from so few."
        )
        mend = f"model.group_size: {sound} or more, usually 8 or 16"
        yield (_warning if size == 2 else _note)("group_size", text, mend)


def _terms_suit(choices: Choices) -> Iterator[Objection]:
    coef, entropy_coef = choices.objective.kl.coef, choices.objective.entropy_coef
    if coef > 1.0:
        yield _warning("kl", f"kl.coef {coef:g}: the KL term outweighs any reward.", "model.kl.coef: 0.001 to 0.1")
    if entropy_coef > 0.1:
        text = f"an entropy bonus of {entropy_coef:g} a token: the policy is rewarded for noise."
        yield _warning("entropy_coef", text, "model.entropy_coef: at most 0.01")
    if choices.engine.uses_own_kernels and choices.objective.mismatch_cap is None:
        text = f"{_name(choices.engine)} computes differently from training, and nothing corrects for it."
        yield _warning("mismatch_cap", text, "model.mismatch_cap: 2.0")


def _lengths_are_within_the_limit(choices: Choices) -> Iterator[Objection]:
    limit, length = choices.sampling.max_new_tokens, choices.aggregation.constant_length
    if length is not None and length != limit:
        name = _name(choices.aggregation)
        text = f"{name} divides by {length} tokens, completions have up to {limit}: this scales the gradient."
        yield _note("aggregation", text, f"model.aggregation.max_tokens: {limit}")
    for term, weight in weighted_terms(choices.reward):
        if term.length_range is not None and weight and term.length_range[1] > limit:
            first, last = term.length_range
            text = f"{_name(term)} acts from {first} to {last} tokens, and completions end at {limit}"
            report, effect = (_warning, ": it never acts.") if first >= limit else (_note, ".")
            yield report("length_reward", text + effect, f"model.reward: {_name(term)} within {limit} tokens")


RULES: tuple[Callable[[Choices], Iterator[Objection]], ...] = (
    _level_suits_surrogate,
    _controller_has_work,
    _refill_suits_advantage,
    _rollouts_are_sampled,
    _ratio_leaves_one,
    _updates_are_few,
    _alpha_survives_optimizer,
    _bounds_act,
    _alpha_is_moderate,
    _group_is_large_enough,
    _terms_suit,
    _lengths_are_within_the_limit,
)


def _name(part: object) -> str:
    return type(part).__name__
