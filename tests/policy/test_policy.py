"""The policy: text of its completions, and the modes of its model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pspo.policy.policy import Policy
from tests.support.models import make_model, make_tokenizer
from tests.support.rollouts import built


@pytest.fixture
def thinking(tmp_path: Path) -> Policy:
    """A policy whose tokenizer has ``<think>`` and ``</think>`` as special tokens, 259 and 260."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.save_pretrained(tmp_path)
    make_model(vocab_size=261).save_pretrained(tmp_path)
    return Policy(model_name_or_path=str(tmp_path))


def test_special_tokens_of_the_text_are_decoded(thinking: Policy) -> None:
    four, end, pad, begin = thinking.tokenizer.convert_tokens_to_ids("4"), 2, 0, 1
    rows = [[259, four, 260, four, end], [four, end], [begin, 259, four, end, pad]]
    assert thinking.pretrained.decoded_with_special_tokens(rows) == ["<think>4</think>4", None, "<think>4"]
    assert thinking.tokenizer.batch_decode(rows, skip_special_tokens=True) == ["44", "4", "4"]


@pytest.mark.parametrize("recompute", [False, True])
def test_evaluation_mode_stays_through_generation(recompute: bool, tiny_model: Path) -> None:
    """Only layers that recompute their activations keep the flag of training, not their parts."""
    policy = built(tiny_model, gradient_checkpointing=recompute)
    policy.stay_in_evaluation_mode()
    for _ in range(2):
        training = {type(module).__name__ for module in policy.causal_lm.modules() if module.training}
        assert training == ({"Qwen2DecoderLayer"} if recompute else set())
        assert policy.training
        with policy.generating() as model:
            assert not any(module.training for module in model.modules())
        policy.eval().train()
    assert not policy.eval().training


def test_a_mode_that_differs_by_module_survives_generation(tiny_model: Path) -> None:
    policy = built(tiny_model)
    part = policy.causal_lm.get_submodule("model.norm").eval()
    with policy.generating():
        assert not policy.causal_lm.training
    assert policy.causal_lm.training
    assert not part.training


def test_what_a_policy_takes_from_its_config(model_folder: Callable[..., Path]) -> None:
    policy = built(model_folder(max_position_embeddings=16))
    assert (policy.context_length, policy.vocab_size, policy.pad_id, policy.eos_ids) == (16, 259, 0, (2,))
