"""TRL's GRPOTrainer on a workload. A contestant of vs_trl.py.

One iteration is one generation of all completions and ``mu`` optimiser steps over them, without a reference pass,
logging or saving. Only the timing is ours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from recorder import Recorder, start
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from workload import WARM_UP, Workload, questions, tokenizer


class TimedTrainer(GRPOTrainer):
    """Times the phases; what is left is the update."""

    def __init__(self, recorder: Recorder, **settings: Any) -> None:
        self.recorder = recorder
        super().__init__(**settings)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.recorder.phase("rollout"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.recorder.phase("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.recorder.phase("old_logprobs"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._generate_and_score_completions(*args, **kwargs)
        self.recorder.completed(output["prompt_mask"], output["completion_mask"])
        return output


class Marks(TrainerCallback):
    """Tells the recorder where iterations begin."""

    def __init__(self, recorder: Recorder, mu: int) -> None:
        self.recorder, self.mu = recorder, mu

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin an iteration before the first of its updates."""
        if state.global_step % self.mu == 0:
            self.recorder.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the last iteration."""
        if state.global_step == state.max_steps:
            self.recorder.end()


def config(workload: Workload, folder: Path) -> GRPOConfig:
    """Return TRL's settings for the workload."""
    return GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=workload.device == "cpu",
        bf16=workload.precision == "bf16-mixed",
        gradient_checkpointing=workload.trl_gradient_checkpointing,
        per_device_train_batch_size=workload.micro_batch,
        gradient_accumulation_steps=workload.rows // workload.micro_batch,
        steps_per_generation=workload.rows // workload.micro_batch,
        num_generations=workload.group_size,
        num_iterations=workload.mu,
        max_completion_length=workload.max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        generation_kwargs={} if workload.eos_share else {"min_new_tokens": workload.max_new_tokens},
        beta=0.0,
        loss_type="dapo",  # the mean over all tokens, as ours
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=workload.mu * (WARM_UP + workload.iterations),
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        seed=workload.seed,
    )


def main(folder: str, result: str) -> None:
    """Run the workload of ``folder`` and write what was measured to ``result``."""
    path, workload, recorder = start(folder, rest="update")

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [workload.reward(row) for row in range(len(completions))]

    trainer = TimedTrainer(
        recorder,
        model=AutoModelForCausalLM.from_pretrained(workload.model_path(path), dtype=torch.float32),
        processing_class=tokenizer(workload, path),
        reward_funcs=reward,
        args=config(workload, path),
        train_dataset=Dataset.from_dict({"prompt": questions(path) * (WARM_UP + workload.iterations)}),
        callbacks=[Marks(recorder, workload.mu)],
    )
    trainer.train()
    recorder.write(Path(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
