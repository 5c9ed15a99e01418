"""Rollout engines: from prompts to completions."""

from lightning_pspo.rollout.base import RolloutEngine, Sampling, completion_mask, keyed_uniforms, pick
from lightning_pspo.rollout.continuous import ContinuousBatchingEngine
from lightning_pspo.rollout.generate import GenerateEngine
from lightning_pspo.rollout.graph import GraphEngine
from lightning_pspo.rollout.shared_prefix import SharedPrefixEngine
from lightning_pspo.rollout.vllm import VLLMEngine

__all__ = [
    "ContinuousBatchingEngine",
    "GenerateEngine",
    "GraphEngine",
    "RolloutEngine",
    "Sampling",
    "SharedPrefixEngine",
    "VLLMEngine",
    "completion_mask",
    "keyed_uniforms",
    "pick",
]
