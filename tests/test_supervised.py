"""SupervisedModule: its gradient, its resumption, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning_pspo.callbacks import RolloutCheckpoint, TrustRegionReport
from torch import Tensor

from lightning_pspo.checkpoints.store import checkpoint_folder
from lightning_pspo.cli.modules import chosen_module
from lightning_pspo.data.prompt_format import PromptFormat
from lightning_pspo.data.sources import Table
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.surrogates import Aggregation, SequenceMean, TokenMean
from lightning_pspo.policy.policy import Policy
from lightning_pspo.supervised import SupervisedModule
from lightning_pspo.trainable import TrainableModule
from lightning_pspo.training.settings import PassLimits, SamplingSettings

TURNS = "{% for m in messages %}{{ m.content }}<s>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
SOLUTIONS = ("1+2=3", "so 2+3=5, which is 5", "7", "4+4=8 and #### 8")


def write(folder: Path, solutions: tuple[str | None, ...] = SOLUTIONS) -> Path:
    rows = [{"question": f"{n}+?", "answer": str(n), "solution": text} for n, text in enumerate(solutions)]
    path = folder / "solutions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fit(
    model: Path,
    file: Path,
    *,
    kind: type[TrainableModule] = SupervisedModule,
    batches: int = 1,
    resume: Path | None = None,
    prompt: PromptFormat = PromptFormat(),
    callbacks: tuple[Any, ...] = (),
    **settings: Any,
) -> TrainableModule:
    """Train on batches of all four solutions by plain gradient descent at rate 1."""
    policy = Policy(model_name_or_path=str(model))
    sampling = SamplingSettings(max_new_tokens=2)
    settings = {"optimizer": lambda weights: torch.optim.SGD(weights, lr=1.0), "max_grad_norm": None} | settings
    module = kind(policy=policy, sampling=sampling, **settings)
    data = MathDataModule(
        policy.tokenizer, train=Table(file), prompts_per_rollout=4, num_rollouts=batches, prompt=prompt
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        default_root_dir=file.parent,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


def weights(module: TrainableModule) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.policy.parameters()])


@pytest.mark.parametrize(("by_token", "prefix", "end"), [(True, "", 2), (False, "so", 2), (True, "", 1)])
def test_the_step_is_the_gradient_of_the_mean(
    model_folder: Callable[..., Path], tmp_path: Path, by_token: bool, prefix: str, end: int
) -> None:
    """Over the tokens behind the beginning of an answer that the prompt has, up to the one that ends a turn."""
    chat = TURNS if end == 1 else None
    tiny_model = model_folder(chat_template=chat, generation={"eos_token_id": [2, 1]})
    aggregation: Aggregation = TokenMean() if by_token else SequenceMean()
    file, prompt = write(tmp_path), PromptFormat(answer_prefix=prefix)
    trained = weights(fit(tiny_model, file, aggregation=aggregation, prompt=prompt))
    start = SupervisedModule(policy=Policy(model_name_or_path=str(tiny_model)))
    start.configure_model()
    before, tokenizer = weights(start), start.policy.tokenizer
    data = MathDataModule(tokenizer, train=Table(file), prompts_per_rollout=4, num_rollouts=1, prompt=prompt)
    data.setup("fit")
    losses = []  # of each solution, its tokens' negative log-probs, computed without batches
    for row in data.train_dataloader().rows:
        gap = "" if str(tokenizer.decode(row.ids))[-1].isspace() else " "
        text = gap + str(row.problem.solution).removeprefix(prefix).strip()
        solution = [*tokenizer(text, add_special_tokens=False).input_ids]
        solution.append(end)
        ids = torch.tensor([[*row.ids, *solution]])
        logprobs = start.policy.causal_lm(ids).logits[0, len(row.ids) - 1 : -1].log_softmax(-1)
        losses.append(-logprobs.gather(1, torch.tensor(solution).unsqueeze(1)).squeeze(1))
    loss = torch.cat(losses).mean() if by_token else torch.stack([part.mean() for part in losses]).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([weight.grad.flatten() for weight in start.policy.parameters() if weight.grad is not None])
    torch.testing.assert_close(before - trained, gradient, atol=2e-5, rtol=1e-3)
    small = weights(
        fit(tiny_model, file, aggregation=aggregation, limits=PassLimits(micro_batch_size=1), prompt=prompt)
    )
    torch.testing.assert_close(small, trained, atol=1e-5, rtol=1e-4)


def test_a_resumed_run_ends_with_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    file = write(tmp_path)
    checkpoint = checkpoint_folder(tmp_path) / "rollout=000002.ckpt"
    settings: dict[str, Any] = {"optimizer": lambda weights: torch.optim.AdamW(weights, lr=1e-3)}
    whole = fit(tiny_model, file, batches=4, **settings)
    fit(tiny_model, file, batches=3, callbacks=(RolloutCheckpoint(every_n_rollouts=2),), **settings)
    assert torch.equal(weights(fit(tiny_model, file, batches=4, resume=checkpoint, **settings)), weights(whole))
    with pytest.raises(InputError, match="is of SupervisedModule"):
        fit(tiny_model, file, kind=PSPOModule, batches=4, resume=checkpoint, group_size=2, **settings)
    write(tmp_path, (*SOLUTIONS[:-1], "9"))
    with pytest.raises(InputError, match="other solutions"):
        fit(tiny_model, file, batches=4, resume=checkpoint, **settings)


def test_what_it_refuses(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TrustRegionReport"):
        fit(tiny_model, write(tmp_path), callbacks=(TrustRegionReport(),))
    with pytest.raises(InputError, match="'solutions-2' has none"):
        fit(tiny_model, write(tmp_path, ("1", None, "3", "4")))
    with pytest.raises(InputError, match="must have at most"):
        fit(tiny_model, write(tmp_path, ("1", "2", "3", "4 " * 5000)))


def test_files_and_words_choose_the_module(tmp_path: Path) -> None:
    file = tmp_path / "warm.yaml"
    file.write_text("model: {class_path: SupervisedModule}\n")
    assert chosen_module(["fit", "--config", str(file)]) == ("SupervisedModule", ["fit", "--config", str(file)])
    assert chosen_module(["fit", f"--config={file}", "--model=PSPOModule"])[0] == "PSPOModule"
    with pytest.raises(InputError, match="PSPOModule or SupervisedModule"):
        chosen_module(["fit", "--model", "DPOModule"])
