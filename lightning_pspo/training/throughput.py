"""Count the floating-point operations of a rollout, and compare them with the device's peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_pspo.training.minibatches import MiniBatch
from lightning_pspo.types import Rollout

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.5,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.5,
    "H800": 989.5,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
    "MI300X": 1307.4,
}
"""Part of a device's name -> dense TFLOP/s in bfloat16 (float16 where it has none), of the makers' data sheets.

The first that fits counts.
"""


def peak_tflops(device_name: str) -> float | None:
    """Return what a GPU could do, by its name; None if it is not known.

    >>> peak_tflops("NVIDIA H100 80GB HBM3"), peak_tflops("NVIDIA H100 PCIe"), peak_tflops("NVIDIA L40S")
    (989.5, 756.0, 362.0)
    >>> peak_tflops("NVIDIA GeForce GTX 1080") is None
    True
    """
    words = f" {device_name.replace('-', ' ')} "
    return next((peak for name, peak in PEAK_TFLOPS.items() if f" {name} " in words), None)


def utilisation(metrics: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Return ``throughput/mfu`` where the operations and the peak of the device are known."""
    peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak is None or "throughput/tflops" not in metrics:
        return {}
    return {"throughput/mfu": metrics["throughput/tflops"] / peak}


@dataclass(frozen=True)
class ModelSize:
    """Weights that each token is multiplied with."""

    body: int  # of all layers
    head: int  # of the projection on the vocabulary, for completion tokens only

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelSize | None:
        """Return the size of a model; None for a mixture of experts, of which a token sees a part only."""
        if any(hasattr(model.config.get_text_config(), name) for name in ("num_experts", "num_local_experts")):
            return None
        untyped: Any = model
        embeddings = (untyped.get_input_embeddings(), untyped.get_output_embeddings())
        outside = {id(layer.weight) for layer in embeddings if layer is not None}
        body = sum(
            weights.numel() for weights in model.parameters() if weights.dim() > 1 and id(weights) not in outside
        )
        head = embeddings[1] or embeddings[0]
        return cls(body, head.weight.numel())

    def flops(
        self,
        rollout: Rollout,
        mini_batches: Sequence[MiniBatch],
        *,
        forward: float,
        backward: float,
        share_prompts: bool,
    ) -> float:
        """Return the operations that a rank's part of a rollout needs: two for each weight and token of a forward pass.

        Not counted are the products of attention, activations that are computed twice, padding, and groups that
        ``refill_rounds`` replaced. Sampling runs each prompt once for its group.

        Args:
            rollout: The rank's part.
            mini_batches: Its passes.
            forward: Forward passes over the rows of ``mini_batches``, on average.
            backward: Backward passes, each worth two forward ones; one under LoRA, whose base gets no gradient.
            share_prompts: Whether such a pass runs a prompt once for its group.
        """
        prompts = rollout.prompts.prompt_mask.sum(dim=1)  # (B,)
        completions = rollout.completions.completion_mask.sum(dim=1)  # (N,)
        group_size = rollout.rewards.shape[1]

        def of_pass(rows: torch.Tensor, shared: bool) -> float:
            groups = rows // group_size
            prompt = prompts[torch.unique(groups) if shared else groups].sum()
            completion = completions[rows].sum()
            return float(2 * (self.body * (prompt + completion) + self.head * completion))

        every_row = torch.arange(len(completions), device=completions.device)
        passes = [micro.rows for mini in mini_batches for micro in mini.micro_batches if not micro.idle]
        return of_pass(every_row, True) + (forward + backward) * sum(of_pass(rows, share_prompts) for rows in passes)
