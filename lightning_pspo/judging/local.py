"""A Hugging Face model in this process as judge."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from lightning_pspo.judging.base import Judge, JudgeError, Reply
from lightning_pspo.judging.prompts import Messages

if TYPE_CHECKING:
    from lightning_pspo.policy.policy import Policy


class LocalJudge(Judge):
    """A causal language model, asked greedily in a thread of this process; loaded with the first question.

    It shares processor and memory with whatever else runs here: an endpoint is the better choice beside a training run.

    Args:
        model: Hub id, local folder, or ``embedded``.
        max_reply_tokens: Of one reply, at least 1.
        dtype: Of the weights.
        device: Such as ``cuda:1`` or ``cpu``.

    Raises:
        ValueError: ``max_reply_tokens`` is below 1.
    """

    concurrency = 1

    def __init__(
        self,
        model: str,
        max_reply_tokens: int = 256,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "cpu",
    ) -> None:
        if max_reply_tokens < 1:
            raise ValueError(f"`max_reply_tokens` must be at least 1, got {max_reply_tokens}.")
        self.model, self.max_reply_tokens, self.dtype, self.device = model, max_reply_tokens, dtype, device
        self._policy: Policy | None = None
        self._lock = threading.Lock()
        self._asked = self._prompt_tokens = self._reply_tokens = 0

    def identity(self) -> Mapping[str, Any]:
        """Return the model and how it is sampled."""
        return {"model": self.model, "dtype": self.dtype, "greedy": True, "max_reply_tokens": self.max_reply_tokens}

    def spent(self) -> dict[str, float]:
        """Return questions and tokens so far."""
        return {
            "requests": self._asked,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._reply_tokens,
        }

    async def ask(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        """Return the model's greedy reply; the schema is in the messages in words."""
        return await asyncio.to_thread(self._generate, messages)

    def _generate(self, messages: Messages) -> Reply:
        import torch

        with self._lock:
            self._asked += 1
            policy = self._loaded()
            encoded: Any = policy.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            ids = encoded["input_ids"].to(self.device)
            length = int(ids.shape[1])
            limit = policy.context_length
            if limit is not None and length + self.max_reply_tokens > limit:
                raise JudgeError(f"prompt of {length} tokens and a reply do not fit the model's {limit}")
            with policy.generating() as model, torch.no_grad():
                untyped: Any = model
                found = untyped.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=self.max_reply_tokens,
                    do_sample=False,
                    eos_token_id=list(policy.eos_ids),
                    pad_token_id=policy.pad_id,
                )
            said = found[0, length:]
            self._prompt_tokens += length
            self._reply_tokens += len(said)
            return Reply(str(policy.tokenizer.decode(said, skip_special_tokens=True)), length, len(said))

    def _loaded(self) -> Policy:
        if self._policy is None:
            from lightning_pspo.policy.policy import Policy

            try:
                policy = Policy(model_name_or_path=self.model, dtype=self.dtype)
                policy.build(seed=0)
            except (OSError, ValueError) as error:
                raise JudgeError(f"the model {self.model} cannot be loaded: {str(error)[:160]}") from None
            self._policy = policy.to(self.device)
        return self._policy
