"""The loop, with real tiny models and a real Trainer: gradients by hand, invariances, exact resume, evaluation."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_pspo.data.prompt_format import PromptFormat
from lightning_pspo.data.sources import JSONL
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError
from lightning_pspo.grading import Grader
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.schedules import Linear
from lightning_pspo.objective.surrogates import PSPO, Clip, SequenceMean, Unclipped
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.training.settings import EvaluationSettings, SamplingSettings
from lightning_pspo.types import Problem
from tests.support.loop import (
    Even,
    Fit,
    NoSignal,
    distribution,
    fit,
    gradient_of,
    grouped,
    initial,
    plain_gradient,
    rows,
    weights,
)

__all__ = ["fit"]  # a fixture


def test_one_iteration_against_a_plain_gradient(fit: Fit, tiny_model: Path) -> None:
    """At ratio 1 PSPO's gradient is (1 - alpha) times the policy gradient; computed here row by row, unpadded."""
    module, record = fit(
        surrogate=PSPO(alpha=0.25), updates_per_rollout=1, data={"num_rollouts": 1}, limits={"micro_batch_size": 3}
    )
    rollout = record.outputs[0]["rollout"]
    assert (rollout.advantages == 0).any(), "the case must hold a group of zero variance"
    assert (rollout.advantages != 0).any()
    start = initial(tiny_model)
    objective = torch.zeros(())
    for prompt, completion, advantage, _ in rows(rollout):
        objective = objective + advantage * distribution(start, prompt, completion).gather(1, completion[:, None]).sum()
    gradient = plain_gradient(start, (1 - 0.25) * objective / rollout.completions.completion_mask.sum())
    torch.testing.assert_close(gradient_of((module, record), start), gradient, atol=2e-5, rtol=1e-4)
    assert float(record.outputs[0]["updates"][0].grad_norm) == pytest.approx(float(gradient.norm()), rel=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 1.0), (1.0, 0.8), (0.7, 0.8)])
def test_the_gradient_is_that_of_the_distribution_that_was_sampled(
    fit: Fit, tiny_model: Path, temperature: float, top_p: float
) -> None:
    settings: dict[str, Any] = {"sampling": {"temperature": temperature, "top_p": top_p}, "updates_per_rollout": 1}
    run = fit(**settings, surrogate=Unclipped(), data={"num_rollouts": 1})
    rollout = run[1].outputs[0]["rollout"]
    start = initial(tiny_model)
    objective = torch.zeros(())
    for prompt, completion, advantage, _ in rows(rollout):
        logits = distribution(start, prompt, completion) / temperature
        for probabilities, token in zip(logits.softmax(-1), completion.tolist(), strict=True):
            nucleus, mass = [], 0.0
            for candidate in probabilities.argsort(descending=True).tolist():
                nucleus.append(candidate)
                mass += float(probabilities[candidate].detach())
                if mass >= top_p:
                    break
            assert token in nucleus
            objective = objective + advantage * (probabilities[token] / probabilities[nucleus].sum()).log()
    gradient = plain_gradient(start, objective / rollout.completions.completion_mask.sum())
    torch.testing.assert_close(gradient_of(run, start), gradient, atol=1e-5, rtol=1e-3)


def test_ratio_is_exactly_one_at_the_first_update_only(fit: Fit) -> None:
    _, record = fit(updates_per_rollout=2, minibatches_per_rollout=2, limits={"micro_batch_size": 3})
    for output in record.outputs:
        first, *later = output["updates"]
        assert len(later) == 3
        assert first.log_ratio.numel() > 0
        assert (first.log_ratio == 0.0).all()
        assert all((update.log_ratio != 0.0).any() for update in later if update.log_ratio.numel())


def test_mixed_precision_sees_each_update(fit: Fit) -> None:
    """A cache of bfloat16 weights over the whole iteration would keep every ratio at 1."""
    module, record = fit(precision="bf16-mixed", optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    assert all(parameter.dtype == torch.float32 for parameter in module.policy.parameters())
    for output in record.outputs:
        first, second = output["updates"]
        assert (first.log_ratio == 0.0).all()
        assert (second.log_ratio != 0.0).any()


def test_generation_in_mixed_precision_sees_changed_weights(tiny_model: Path) -> None:
    """The casts that it keeps do not outlive it."""
    policy = initial(tiny_model).policy
    ids = torch.tensor([[5, 6, 7]])
    weight = policy.causal_lm.get_parameter("model.layers.0.mlp.down_proj.weight")

    def logits() -> torch.Tensor:
        with policy.generating() as model:
            return model(input_ids=ids).logits

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        before = logits()
        with torch.no_grad():
            weight.mul_(2.0)
        after = logits()
        with policy.generating() as model, torch.no_grad():
            one = model(input_ids=ids).logits
            weight.mul_(2.0)
            assert torch.equal(model(input_ids=ids).logits, one), "within a rollout the weights are cast once"
    assert before.dtype == torch.bfloat16
    assert not torch.equal(before, after)


def test_generation_in_mixed_precision_casts_a_frozen_base_once(tiny_model: Path) -> None:
    """Autocast alone would cast it at every token."""
    policy = Policy(model_name_or_path=str(tiny_model), lora=LoRA(rank=2))
    policy.build(seed=0)
    frozen = [weight for weight in policy.parameters() if not weight.requires_grad]
    weight = policy.causal_lm.get_parameter("model.layers.0.mlp.down_proj.base_layer.weight")
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), policy.generating() as model:
        one = model(input_ids=torch.tensor([[5, 6, 7]])).logits
        with torch.no_grad():
            weight.mul_(2.0)
        assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, one)
    assert not any(weight.requires_grad for weight in frozen)


def test_rows_of_zero_advantage_enter_no_pass(fit: Fit) -> None:
    _, record = fit(updates_per_rollout=1)
    for output in record.outputs:
        rollout = output["rollout"]
        mask = rollout.completions.completion_mask
        active = mask[rollout.advantages[:, 0] != 0].sum()
        assert output["updates"][0].log_ratio.numel() == int(active) < int(mask.sum())


def test_a_rollout_without_any_signal_leaves_the_weights(fit: Fit, tiny_model: Path) -> None:
    module, record = fit(reward=NoSignal())
    assert torch.equal(weights(module), weights(initial(tiny_model)))
    assert float(record.outputs[0]["updates"][0].grad_norm) == 0.0


def test_weights_do_not_depend_on_micro_batches(fit: Fit, tiny_model: Path) -> None:
    results = [
        weights(fit(aggregation=SequenceMean(), minibatches_per_rollout=2, **limits)[0])
        for limits in (
            {"limits": {"micro_batch_size": 1}},
            {"limits": {"micro_batch_size": 3, "micro_batch_tokens": None}},
            {"limits": {"micro_batch_tokens": 100}},
            {},
            {"policy": {"share_prompts": True}, "limits": {"micro_batch_tokens": 100}},
        )
    ]
    moved = (results[0] - weights(initial(tiny_model))).norm()
    assert moved > 1e-3
    for other in results[1:]:
        assert (other - results[0]).norm() < 3e-5 * moved  # after four float32 updates


@pytest.mark.parametrize(("minibatches", "passes"), [(1, 3), (2, 3 * 2 + 1)])
def test_the_first_update_supplies_the_old_logprobs(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, minibatches: int, passes: int
) -> None:
    """Only later mini-batches, which the policy meets when it has moved, need a pass of their own."""
    count = 0
    logprobs = Policy.logprobs

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal count
        count += not keywords  # which the check at the start of a run uses
        return logprobs(*arguments, **keywords)

    monkeypatch.setattr(Policy, "logprobs", counted)
    _, record = fit(updates_per_rollout=3, minibatches_per_rollout=minibatches, data={"num_rollouts": 1})
    assert count == passes
    rollout = record.outputs[0]["rollout"]
    active = rollout.completions.completion_mask & (rollout.advantages != 0.0)
    assert (rollout.old_logprobs[active] < 0.0).all()


def test_an_idle_pass_changes_nothing(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank with fewer passes than another runs idle ones; a row that it scored before keeps its log-probs."""
    plain, record = fit()
    monkeypatch.setattr(PSPOModule, "_reduce", lambda self, values, how: values + 1 if how == "max" else values)
    monkeypatch.setattr(PSPOModule, "_any_rank", lambda self, flags: bool(flags.any()))
    idle, more = fit()
    assert torch.equal(weights(plain), weights(idle))
    for one, other in zip(record.outputs, more.outputs, strict=True):
        assert torch.equal(one["rollout"].old_logprobs, other["rollout"].old_logprobs)


def test_gradient_checkpointing_changes_nothing(fit: Fit) -> None:
    plain, _ = fit()
    recomputed, _ = fit(policy={"gradient_checkpointing": True})
    torch.testing.assert_close(weights(recomputed), weights(plain), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("stop", "lora"), [(1, None), (3, None), (1, LoRA(rank=4))])
def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, tmp_path: Path, stop: int, lora: LoRA | None) -> None:
    """The checkpoint of a run with adapters holds only these."""
    settings: dict[str, Any] = {
        "policy": {"lora": lora},
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        "lr_schedule": Linear(warmup_updates=3),
        "surrogate": Clip(),
        "minibatches_per_rollout": 2,
        "data": {"num_rollouts": 4},
    }
    uninterrupted, record = fit(**settings)
    checkpoint = tmp_path / "rollout=000001.ckpt"
    fit(**settings, limit=stop, save_after={stop: checkpoint})
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert saved
    assert lora is None or all("lora_" in name for name in saved)
    resumed, rest = fit(**settings, ckpt_path=checkpoint)
    assert len(rest.outputs) == 4 - stop
    assert torch.equal(weights(resumed), weights(uninterrupted))
    for output, counterpart in zip(record.outputs[stop:], rest.outputs, strict=True):
        rollout, resampled = output["rollout"], counterpart["rollout"]
        assert rollout.prompts.problems == resampled.prompts.problems
        assert torch.equal(rollout.completions.completion_ids, resampled.completions.completion_ids)


def test_a_finished_run_is_not_trained_again(fit: Fit, tmp_path: Path) -> None:
    checkpoint = tmp_path / "rollout=000002.ckpt"
    done, _ = fit(save_after={2: checkpoint})
    again, record = fit(ckpt_path=checkpoint)
    assert record.outputs == []
    assert torch.equal(weights(again), weights(done))
    longer = {"num_rollouts": 4}
    _, record = fit(ckpt_path=checkpoint, data=longer, limit=2)
    assert record.outputs == []
    _, record = fit(ckpt_path=checkpoint, data=longer)
    assert len(record.outputs) == 2


def test_lora_trains_adapters_only(fit: Fit, tiny_model: Path) -> None:
    module, record = fit(policy={"lora": LoRA(rank=4)}, updates_per_rollout=1)
    before = dict(initial(tiny_model).policy.causal_lm.named_parameters())
    trained = {name for name, parameter in module.policy.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    for name, parameter in module.policy.causal_lm.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])
    assert any(float(p.detach().abs().max()) > 0 for n, p in module.policy.named_parameters() if "lora_B" in n)
    assert float(record.outputs[0]["updates"][0].log_ratio.abs().max()) == 0.0


def test_a_checkpoint_of_another_model_is_refused(fit: Fit, tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    checkpoint = tmp_path / "rollout=000001.ckpt"
    fit(save_after={1: checkpoint})
    with pytest.raises(InputError, match=r"another model \(.*\): policy\.model\.\S+ is \(.*\) in the checkpoint and"):
        fit(folder=model_folder(hidden_size=48), ckpt_path=checkpoint)


def test_another_stream_of_prompts_is_refused_on_resume(fit: Fit, tmp_path: Path) -> None:
    checkpoint = tmp_path / "rollout=000001.ckpt"
    fit(save_after={1: checkpoint})
    with pytest.raises(InputError, match="prompts_per_rollout=4, this run has 8"):
        fit(data={"prompts_per_rollout": 8}, ckpt_path=checkpoint)


def test_more_minibatches_than_rows(fit: Fit) -> None:
    with pytest.raises(InputError, match=r"`minibatches_per_rollout` must be at most 16 .the rollout's rows., got 17"):
        fit(minibatches_per_rollout=17)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "`group_size` must be at least 2, got 1"),
        ({"updates_per_rollout": 0}, "`updates_per_rollout` must be at least 1, got 0"),
        ({"minibatches_per_rollout": 0}, "`minibatches_per_rollout` must be at least 1, got 0"),
        ({"refill_rounds": -1}, "`refill_rounds` must be at least 0, got -1"),
        ({"mismatch_cap": 0.5}, "`mismatch_cap` must be finite and at least 1, got 0.5"),
        ({"max_grad_norm": 0.0}, "`max_grad_norm` must be greater than 0, got 0.0"),
        ({"entropy_coef": float("nan")}, "`entropy_coef` must be finite and at least 0, got nan"),
        ({"ratio_level": "word"}, "`ratio_level` must be one of token, sequence, got word"),
        ({"mismatch_level": "word"}, "`mismatch_level` must be one of token, sequence, got word"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"sampling": {"max_new_tokens": 512}}, "`max_new_tokens` must be below the model's context of 512 .*, got 5"),
        ({"evaluation": {"max_new_tokens": 512}}, "`max_new_tokens` must be below the model's context .*, got 512"),
    ],
)
def test_settings_out_of_range(tiny_model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PSPOModule(policy=Policy(model_name_or_path=str(tiny_model)), **grouped(settings))


def test_an_optimiser_that_asks_for_the_loss_again(fit: Fit) -> None:
    with pytest.raises(InputError, match=r"`model.optimizer` must step on a gradient alone, got LBFGS"):
        fit(optimizer=torch.optim.LBFGS)


@pytest.mark.parametrize(("length", "rule"), [(505, r"be at most [0-9]+ for"), (600, "have room behind")])
def test_a_prompt_that_leaves_no_room(tiny_model: Path, length: int, rule: str) -> None:
    module = PSPOModule(policy=Policy(model_name_or_path=str(tiny_model)))
    with pytest.raises(InputError, match=rf"`max_new_tokens` must {rule} a prompt of [0-9]+ tokens in .* 512, got 512"):
        module.complete(["9" * length], max_new_tokens=512, prompt=PromptFormat(template="{question}"))


def test_evaluation_counts_each_problem_once(
    tmp_path: Path, tiny_model: Path, model_folder: Callable[..., Path]
) -> None:
    """The references are what the greedy policy answers, for 5 of 7 problems."""
    policy = Policy(model_name_or_path=str(tiny_model))
    evaluation = EvaluationSettings(temperatures=[0.0, 1.0], samples=3)
    module = PSPOModule(policy=policy, sampling=SamplingSettings(max_new_tokens=8), evaluation=evaluation)
    path = tmp_path / "held_out.jsonl"

    def write(answers: list[str]) -> None:
        rows = [{"question": f"Number {index}", "answer": answer} for index, answer in enumerate(answers)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def evaluate() -> list[Any]:
        data = MathDataModule(policy.tokenizer, val={"toy": JSONL(str(path))}, eval_batch_size=3)
        trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=str(tmp_path), enable_progress_bar=False)
        return [trainer.predict(module, data), trainer.validate(module, data)[0]]

    write(["nothing like it"] * 7)
    outputs, _ = evaluate()
    greedy = [sample.completion for output in outputs for sample in output.samples[0.0]]
    assert len(greedy) == 7
    write([r"\boxed{" + text + "}" if index < 5 else "nothing like it" for index, text in enumerate(greedy)])
    outputs, logged = evaluate()
    verdicts = [sample.grade.correct for output in outputs for sample in output.samples[0.0]]
    result = module.results["toy"][0.0]
    assert logged["val/toy/accuracy"] == pytest.approx(sum(verdicts) / 7)
    assert (result.problems, result.samples, result.correct) == (7, 7, sum(verdicts))
    sampled = [sample for output in outputs for sample in output.samples[1.0]]
    assert module.results["toy"][1.0].samples == len(sampled) == 21
    assert logged["val/toy/length_tokens@t1"] == pytest.approx(sum(s.length_tokens for s in sampled) / 21)


def test_the_entropy_of_the_policy_is_logged(fit: Fit) -> None:
    """Of every row where there is a KL term: the mean of -log pi_old over all sampled tokens."""
    module, record = fit(kl={"coef": 0.1}, data={"num_rollouts": 1})
    rollout = record.outputs[0]["rollout"]
    expected = -rollout.old_logprobs[rollout.completions.completion_mask].double().mean()
    assert float(module.trainer.callback_metrics["train/entropy"]) == pytest.approx(float(expected), rel=1e-6)
    assert 0.0 < float(expected) < math.log(module.policy.vocab_size) + 1.0


def test_evaluation_has_its_own_distribution_and_logs_the_reward(
    tmp_path: Path, tiny_model: Path, problem_file: Path
) -> None:
    module = PSPOModule(
        policy=Policy(model_name_or_path=str(tiny_model)),
        reward=Even(),
        sampling=SamplingSettings(max_new_tokens=8, top_p=1.0),
        evaluation=EvaluationSettings(temperatures=[1.0], samples=2, max_new_tokens=3, top_p=1e-6),
    )
    data = MathDataModule(module.policy.tokenizer, val={"toy": JSONL(str(problem_file), limit=5)})
    trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=str(tmp_path), enable_progress_bar=False)
    outputs = trainer.predict(module, data)
    (logged,) = trainer.validate(module, data)
    assert outputs is not None
    samples = [sample for output in outputs for sample in output.samples[1.0]]
    assert len(samples) == 10
    assert all(sample.length_tokens <= 3 for sample in samples)
    assert all(a.completion == b.completion for a, b in zip(samples[::2], samples[1::2], strict=True)), "a tiny nucleus"
    assert logged["val/toy/reward"] == pytest.approx(sum(Even()(samples)) / 10)


def test_an_unmarked_answer_of_a_cut_off_completion_does_not_count(tiny_model: Path) -> None:
    def verdicts(**settings: Any) -> list[bool]:
        module = PSPOModule(policy=Policy(model_name_or_path=str(tiny_model)), grader=Grader(**settings))
        problem = Problem("p", "How many are left?", "4")
        completions = [("So far 4", True, 3), ("So far 4", False, 3), ("#### 4", True, 3), ("#### 5", True, 3)]
        return [sample.grade.correct for sample in module._graded([problem], [0] * 4, completions)]

    assert verdicts() == [False, True, True, False]
    assert verdicts(cut_off="any") == [True, True, True, False]
    assert verdicts(cut_off="none") == [False, True, False, False]
