"""From the settings of a run to those of a small one on the same model, objective, engine and problems."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_pspo.data.sources import PromptSource
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem

logger = logging.getLogger(__name__)

_BUILT_IN = (
    ("What is 17 + 25?", "42"),
    ("A box holds 12 eggs. How many eggs are in 7 boxes?", "84"),
    ("Solve for x: 3x - 5 = 16.", "7"),
    ("What is the area of a circle with radius 3? Answer in terms of $\\pi$.", "9\\pi"),
    ("Tom has 48 clips and gives away a third of them. How many are left?", "32"),
    ("What is the remainder when 2^10 is divided by 7?", "2"),
    ("How many positive divisors does 36 have?", "9"),
    ("What is 0.25 written as a fraction in lowest terms?", "1/4"),
)


@dataclass(frozen=True)
class Size:
    """How much is sampled and computed.

    Attributes:
        prompts: At least 2 and even: two ranks share them.
        completions: Of each prompt, at least 2.
        tokens: Of a completion, at least 1.

    Raises:
        InputError: A number is out of range.
    """

    prompts: int = 2
    completions: int = 4
    tokens: int = 24

    def __post_init__(self) -> None:
        if self.prompts < 2 or self.prompts % 2:
            raise InputError(f"`prompts` must be even and at least 2, got {self.prompts}.")
        if self.completions < 2:
            raise InputError(f"`completions` must be at least 2, got {self.completions}.")
        if self.tokens < 1:
            raise InputError(f"`tokens` must be at least 1, got {self.tokens}.")


class OrBuiltIn(PromptSource):
    """The problems of a source, or eight of this package if it cannot be read.

    Args:
        source: None for those of this package.

    Attributes:
        why: Why the source was not used; None if it was.
    """

    def __init__(self, source: PromptSource | None = None) -> None:
        self.source = source
        self.why: str | None = None

    def load(self) -> list[Problem]:
        """Return the problems; never fails for want of data."""
        self.why = "none is named"
        if self.source is not None:
            try:
                problems = self.source.load()
            except InputError as error:
                self.why = str(error)
            else:
                self.why = None
                return problems
        logger.warning("data.train cannot be read, the checks run on built-in problems: %s", self.why)
        return [Problem(f"built-in-{place}", *one) for place, one in enumerate(_BUILT_IN)]


def small_run(config: Mapping[str, Any], size: Size, callback: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run of one rollout on one device.

    Args:
        config: All settings of the user's run.
        size: Of the rollout.
        callback: The only one, by class path.

    Returns:
        New settings, but for ``trainer.default_root_dir``; ``config`` stays as it is.
    """
    small: dict[str, Any] = copy.deepcopy(dict(config))
    small["ckpt_path"] = None
    trainer, model, data = (small[name] for name in ("trainer", "model", "data"))
    trainer |= {
        "callbacks": [dict(callback)],
        "logger": False,
        "strategy": "auto",
        "devices": 1,
        "num_nodes": 1,
        "plugins": None,
        "profiler": None,
        "max_time": None,
        "fast_dev_run": False,
        "overfit_batches": 0.0,
        "limit_train_batches": None,
        "limit_val_batches": 0,
        "val_check_interval": None,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    completions = min(size.completions, model["group_size"])
    model |= {
        "group_size": completions,
        "sampling": model["sampling"] | {"max_new_tokens": min(size.tokens, model["sampling"]["max_new_tokens"])},
        "minibatches_per_rollout": min(model["minibatches_per_rollout"], size.prompts * completions),
        "refill_rounds": 0,  # there is a signal in every group
        "mask_truncated": False,  # nearly all are
    }
    source = {} if data["train"] is None else {"source": data["train"]}
    data |= {
        "train": {"class_path": f"{__name__}.OrBuiltIn", "init_args": source},
        "val": None,
        "test": None,
        "predict": None,
        "prompts_per_rollout": size.prompts,
        "num_rollouts": 2,
    }
    return small


def on_two_ranks(small: Mapping[str, Any], config: Mapping[str, Any], callback: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a small run on two ranks.

    Args:
        small: Of ``small_run``.
        config: All settings of the user's run, whose strategy it gets; DDP where that is for one device.
        callback: The only one, by class path.
    """
    found: dict[str, Any] = copy.deepcopy(dict(small))
    strategy = config["trainer"]["strategy"]
    alone = isinstance(strategy, str) and (strategy == "auto" or strategy.startswith("single"))
    alone = alone or (isinstance(strategy, Mapping) and "SingleDevice" in strategy["class_path"])
    found["trainer"] |= {"devices": 2, "strategy": "ddp" if alone else strategy, "callbacks": [dict(callback)]}
    return found
