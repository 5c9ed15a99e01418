"""A plain training loop: ``generate``, full logits, clipped ratio. A contestant of vs_trl.py.

Written with care, without tricks: every prompt repeated for its group, all rows to the longest, padding included. The
old log-probs are those of the first update, which costs no pass of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from recorder import start
from torch import Tensor
from transformers import AutoModelForCausalLM
from workload import WARM_UP, Workload, questions, tokenizer


def sample(model: torch.nn.Module, ids: Tensor, mask: Tensor, workload: Workload) -> tuple[Tensor, Tensor]:
    """Return (N, P + T) token ids and their mask, False on padding."""
    model.eval()
    with torch.no_grad():
        sequences = model.generate(
            input_ids=ids.repeat_interleave(workload.group_size, dim=0),
            attention_mask=mask.repeat_interleave(workload.group_size, dim=0),
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_new_tokens=workload.max_new_tokens,
            min_new_tokens=None if workload.eos_share else workload.max_new_tokens,
        )
    model.train()
    completions = sequences[:, ids.shape[1] :]
    ends = workload.eos_ids if workload.eos_share else []
    ended = torch.isin(completions, torch.tensor(ends, dtype=torch.long, device=completions.device))
    completion_mask = ended.cumsum(dim=1) - ended.long() == 0
    return sequences, torch.cat([mask.bool().repeat_interleave(workload.group_size, dim=0), completion_mask], dim=1)


def logprobs(model: torch.nn.Module, sequences: Tensor, mask: Tensor, tokens: int, workload: Workload) -> Tensor:
    """Return (n, T) log-probs of the last T = ``tokens`` tokens."""
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.autocast(workload.device, torch.bfloat16, enabled=workload.precision == "bf16-mixed"):
        inputs = {"input_ids": sequences, "attention_mask": mask.long(), "position_ids": position_ids}
        logits = model(**inputs, use_cache=False).logits
    logits = logits[:, -tokens - 1 : -1].float()
    return logits.log_softmax(dim=-1).gather(-1, sequences[:, -tokens:].unsqueeze(-1)).squeeze(-1)


def main(folder: str, result: str) -> None:
    """Run the workload of ``folder`` and write what was measured to ``result``."""
    path, workload, recorder = start(folder)
    words = tokenizer(workload, path)
    model = AutoModelForCausalLM.from_pretrained(workload.model_path(path), dtype=torch.float32).to(workload.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.learning_rate, weight_decay=0.0)
    rewards = torch.tensor([workload.reward(row) for row in range(workload.rows)], device=workload.device)
    grouped = rewards.view(-1, workload.group_size)
    advantages = ((grouped - grouped.mean(1, True)) / (grouped.std(1, keepdim=True) + 1e-4)).view(-1, 1)  # (N, 1)
    for _ in range(WARM_UP + workload.iterations):
        recorder.begin()
        batch = words(questions(path), return_tensors="pt", padding=True).to(workload.device)
        with (
            recorder.phase("rollout"),
            torch.autocast(workload.device, torch.bfloat16, enabled=workload.precision == "bf16-mixed"),
        ):
            sequences, mask = sample(model, batch.input_ids, batch.attention_mask, workload)
        completion_mask = mask[:, batch.input_ids.shape[1] :]
        recorder.completed(batch.attention_mask, completion_mask)
        tokens, denominator = completion_mask.shape[1], completion_mask.sum()
        old: list[Tensor] = []
        with recorder.phase("update"):
            for update in range(workload.mu):
                for index, first in enumerate(range(0, workload.rows, workload.micro_batch)):
                    rows = slice(first, first + workload.micro_batch)
                    current = logprobs(model, sequences[rows], mask[rows], tokens, workload)
                    if update == 0:
                        old.append(current.detach())
                    ratio = (current - old[index]).exp()
                    clipped = ratio.clamp(1 - 0.2, 1 + 0.2)
                    objective = torch.minimum(ratio * advantages[rows], clipped * advantages[rows])
                    (-objective.masked_fill(~completion_mask[rows], 0.0).sum() / denominator).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    recorder.end()
    recorder.write(Path(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
