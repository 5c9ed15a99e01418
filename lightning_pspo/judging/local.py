"""A Hugging Face model in this process as judge."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from lightning_pspo.errors import check_at_least
from lightning_pspo.judging.base import Judge, JudgeError, Messages, Reply
from lightning_pspo.judging.parsing import one_line

if TYPE_CHECKING:
    from lightning_pspo.policy.policy import Policy


class LocalJudge(Judge):
    """A causal language model, asked greedily in a thread of this process; loaded with the first question.

    It shares processor and memory with everything else here: beside a training run an endpoint is the better choice.

    Args:
        model: Hub id, local folder, or ``embedded``.
        max_reply_tokens: Longest reply, at least 1 token.
        dtype: Data type of the weights.
        device: Device of the model, such as ``cuda:1`` or ``cpu``.
    """

    def __init__(
        self,
        *,
        model: str,
        max_reply_tokens: int = 256,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "cpu",
    ) -> None:
        check_at_least("max_reply_tokens", max_reply_tokens, 1)
        self.model, self.max_reply_tokens, self.dtype, self.device = model, max_reply_tokens, dtype, device
        self._policy: Policy | None = None
        self._lock = threading.Lock()
        self._spent = {"requests": 0.0, "prompt_tokens": 0.0, "completion_tokens": 0.0}

    def identity(self) -> Mapping[str, Any]:
        """Return the model and how it is sampled."""
        return {"model": self.model, "dtype": self.dtype, "greedy": True, "max_reply_tokens": self.max_reply_tokens}

    def spent(self) -> dict[str, float]:
        """Return questions and tokens so far."""
        return dict(self._spent)

    async def ask(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        """Return the model's greedy reply; the messages describe the schema in words."""
        return await asyncio.to_thread(self._generate, messages)

    def _generate(self, messages: Messages) -> Reply:
        import torch

        with self._lock:
            self._spent["requests"] += 1
            policy = self._loaded()
            encoded: Any = policy.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            ids = encoded["input_ids"].to(self.device)
            length, limit = int(ids.shape[1]), policy.context_length
            if limit is not None and length + self.max_reply_tokens > limit:
                raise JudgeError(f"prompt of {length} tokens and a reply do not fit the model's {limit}")
            with policy.generating() as model, torch.no_grad():
                untyped: Any = model
                output = untyped.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=self.max_reply_tokens,
                    do_sample=False,
                    eos_token_id=list(policy.eos_ids),
                    pad_token_id=policy.pad_id,
                )
            reply = output[0, length:]
            self._spent["prompt_tokens"] += length
            self._spent["completion_tokens"] += len(reply)
            return Reply(str(policy.tokenizer.decode(reply, skip_special_tokens=True)), length, len(reply))

    def _loaded(self) -> Policy:
        if self._policy is None:
            from lightning_pspo.policy.policy import Policy

            try:
                policy = Policy(model_name_or_path=self.model, dtype=self.dtype)
                policy.build(seed=0)
            except (OSError, ValueError) as error:
                raise JudgeError(f"the model {self.model} cannot be loaded: {one_line(str(error))}") from None
            self._policy = policy.to(self.device)
        return self._policy
