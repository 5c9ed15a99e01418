"""A check at the start of a run that rollouts and updates see the same model, in a few passes over short texts.

Some models have log-probs that depend on the other rows of a pass, on padding, on its length, or on chance. The ratio
of such a model measures these instead of the policy's change, and training fails without an error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError, one_line
from lightning_pspo.policy.forward import MACHINE_ERRORS, PASS_ERRORS
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rollout.base import RolloutEngine, Sampling
from lightning_pspo.rollout.unpadded import UnpaddedEngine
from lightning_pspo.types import Inputs, Problem, PromptBatch

logger = logging.getLogger(__name__)

PROMPT_LENGTHS = (16, 3, 3)
"""Tokens of the prompts; the second one is compared alone and among the others."""

NEW_TOKENS = 5

TOLERANCES = {torch.float32: 5e-3, torch.float64: 5e-3}
"""Nats by which log-probs may differ because of rounding, by dtype of the products; measured: 1e-5 in float32."""

HALF_PRECISION_TOLERANCE = 0.5
"""The same in bfloat16 and four bits, where the mean over improbable tokens was measured to reach 0.14."""

SAME_PASS_TOLERANCE = 1e-5
"""Nats between two equal passes on a CPU; on a GPU, sums in another order are rounded differently."""


def consistent_engine(policy: Policy, engine: RolloutEngine) -> RolloutEngine:
    """Check that log-probs and greedy tokens do not depend on neighbours, padding, training mode or chance.

    Call it under the autocast of the run, so that its own kernels are checked, and with the tolerance of its precision.

    A model that is noisy in training mode is kept in evaluation mode from then on, and a model that padding changes is
    sampled without. Every rank must take part, with a policy that is built and on its device. Random generators keep
    their state. The engine to sample with is returned: the same one, or an ``UnpaddedEngine`` around it.

    Raises:
        InputError: If the model or the engine cannot be made consistent.
    """
    probe = _Probe(policy, engine)
    with _undisturbed(policy):
        with policy.must_compute():
            _check_passes(policy, probe)
        return _fitting_engine(policy, engine, probe)


def _check_passes(policy: Policy, probe: _Probe) -> None:
    """Keep a noisy model in evaluation mode; refuse one whose log-probs are NaN, or depend on chance or other rows."""
    noise = probe.noise()
    if math.isnan(noise):  # of which no comparison tells
        raise InputError(
            f"{policy.model_name_or_path} cannot be trained: its log-probs are NaN, no numbers. Its weights may be "
            "damaged, or its config not theirs."
        )
    if noise > probe.noise_tolerance:
        policy.stay_in_evaluation_mode()
        logger.warning("The model adds noise in training mode: it is trained in evaluation mode.")
        noise = probe.noise()
    if noise > probe.noise_tolerance:
        raise InputError(
            f"{policy.model_name_or_path} cannot be trained: its log-probs differ by {noise:.2g} nats between two "
            "equal passes, or between training and evaluation mode. Switch off what is random in its config."
        )
    if (change := probe.change_among_others()) > probe.tolerance:
        raise InputError(
            f"{policy.model_name_or_path} cannot be trained: the log-probs of a completion change by {change:.2g} nats "
            "with the other rows of its pass. Use a model that treats each row on its own."
        )


def _fitting_engine(policy: Policy, engine: RolloutEngine, probe: _Probe) -> RolloutEngine:
    """Return the first engine that draws right tokens among other prompts: as it is, or with prompts separated."""
    model, kind = policy.model_name_or_path, type(engine).__name__
    by_others = policy.pretrained.trust_remote_code or not __name__.startswith(type(engine).__module__.split(".")[0])
    try:
        wrong = probe.wrong_tokens(engine, among_others=False)
        wrong_among_others = probe.wrong_tokens(engine, among_others=True)
    except PASS_ERRORS as error:
        refuses = isinstance(error, ValueError | NotImplementedError)  # transformers, to generate with a model
        if isinstance(error, (InputError, *MACHINE_ERRORS)) or (by_others and not refuses):  # whose author needs it all
            raise
        raise InputError(f"{kind} cannot sample {model}: {one_line(error)}. Use another model, or `engine`.") from error
    if wrong > 0:
        raise InputError(
            f"{kind} cannot sample {model}: {wrong} of {probe.new_tokens} greedy tokens are not the most probable ones "
            "of a plain pass. Use another `engine`, such as GenerateEngine."
        )
    if wrong_among_others == 0:
        return engine
    remedies = {False: "prompts of each length are sampled apart", True: "rows are sampled singly"}
    for single_rows, remedy in remedies.items():
        separating = UnpaddedEngine(engine=engine, single_rows=single_rows)
        if probe.wrong_tokens(separating, among_others=True) == 0:
            logger.warning("Other prompts in a batch change the completions of %s: %s, which is slow.", model, remedy)
            return separating
    raise InputError(
        f"{kind} cannot sample {model}: its greedy tokens change with the other prompts of a rollout. Use another "
        "`engine`."
    )


@contextmanager
def _undisturbed(policy: Policy) -> Iterator[None]:
    """Restore the random generators."""
    device = policy.causal_lm.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        yield


class _Probe:
    """Short random prompts and completions, and what the policy and its engine make of them."""

    def __init__(self, policy: Policy, engine: RolloutEngine) -> None:
        self.policy = policy
        model = policy.causal_lm
        self.device = model.device
        coarse = engine.uses_own_kernels or policy.pretrained.is_quantized
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
        self.tolerance = TOLERANCES.get(dtype, HALF_PRECISION_TOLERANCE)
        self.engine_tolerance = HALF_PRECISION_TOLERANCE if coarse else self.tolerance
        self.noise_tolerance = SAME_PASS_TOLERANCE if self.device.type == "cpu" else self.tolerance
        room = policy.context_length or sum(PROMPT_LENGTHS)
        self.new_tokens = max(1, min(NEW_TOKENS, room // 4))
        special = set(policy.tokenizer.all_special_ids)
        size = min(policy.vocab_size, len(policy.tokenizer))
        ordinary = torch.tensor([id_ for id_ in range(size) if id_ not in special])
        generator = torch.Generator().manual_seed(0)

        def text(length: int) -> list[int]:
            picks: Tensor = torch.randint(len(ordinary), (length,), generator=generator)
            return list(ordinary[picks].tolist())

        longest = max(1, min(room - self.new_tokens, engine.max_prompt_tokens or room))
        self.prompts = [text(min(length, longest)) for length in PROMPT_LENGTHS]
        self.completions = [text(max(1, self.new_tokens - 2)), text(self.new_tokens), text(1)]

    def noise(self) -> float:
        """Return the largest difference in nats between equal passes, and between modes; NaN if log-probs are."""
        first, second = self._scored([1]), self._scored([1])
        mode = self.policy.training
        self.policy.eval()
        evaluated = self._scored([1])
        self.policy.train(mode)
        return max(float((first - other).abs().max()) for other in (second, evaluated))

    def change_among_others(self) -> float:
        """Return the mean change in nats of a completion's log-probs, from a pass of its own to one with others."""
        return float((self._scored([1]) - self._scored([0, 1, 2])).abs().mean())

    def wrong_tokens(self, engine: RolloutEngine, *, among_others: bool) -> int:
        """Return how many greedy tokens of a prompt are clearly less probable than others in a plain pass.

        They are drawn for the prompt alone, or as two completions of each of three prompts.
        """
        members, samples = ([0, 1, 2], 2) if among_others else ([1], 1)
        policy = self.policy
        sampling = Sampling(
            samples=samples,
            temperature=0.0,
            top_p=1.0,
            max_new_tokens=self.new_tokens,
            eos_ids=policy.eos_ids,
            pad_id=policy.pad_id,
        )
        with policy.generating() as model:
            sampled = engine.generate(model, self._batch(members), sampling, None)
            first = members.index(1) * samples
            drawn = sampled.unpadded()[first : first + samples]
            return max(self._improbable(model, tokens) for tokens in drawn)

    def _improbable(self, model: PreTrainedModel, tokens: Sequence[int]) -> int:
        prompt = self.prompts[1]
        ids = torch.tensor([[*prompt, *tokens]], device=self.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()  # (T, V)
        gaps = logits.amax(dim=1) - logits.gather(1, ids[0, len(prompt) :].unsqueeze(1)).squeeze(1)
        return int((gaps > self.engine_tolerance).sum())

    def _scored(self, members: list[int]) -> Tensor:
        """Return the log-probs of the compared completion in a training pass, (T,)."""
        batch = self._batch(members)
        ids, mask = self._padded([self.completions[member] for member in members], left=False)
        order = torch.arange(len(members), device=self.device)
        inputs = Inputs(batch.prompt_ids, batch.prompt_mask, ids, mask, prompt_of=order)
        with self.policy.eager():  # not worth compiling for
            logprobs, _ = self.policy.logprobs(inputs, temperature=1.0, top_p=1.0)
        row = members.index(1)
        return logprobs[row][mask[row]]

    def _batch(self, members: list[int]) -> PromptBatch:
        ids, mask = self._padded([self.prompts[member] for member in members], left=True)
        order = torch.arange(len(members), device=self.device)
        problems = tuple(Problem(str(member), "", "") for member in members)
        return PromptBatch("check", problems, ids, mask, order, torch.ones_like(order, dtype=torch.bool))

    def _padded(self, rows: list[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        """Return ids (n, L) and mask (n, L)."""
        lengths = torch.tensor([[len(row)] for row in rows], device=self.device)
        columns = torch.arange(int(lengths.max()), device=self.device)
        mask = columns >= lengths.max() - lengths if left else columns < lengths
        ids = torch.zeros(mask.shape, dtype=torch.long, device=self.device)
        ids[mask] = torch.tensor([id_ for row in rows for id_ in row], device=self.device)
        return ids, mask
