"""Whether a checkpoint fits this run: its policy, optimiser and alpha controller."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from lightning_pspo.errors import InputError, one_line
from lightning_pspo.objective.alpha import AlphaController

_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""States of torch's optimisers that have a weight's shape."""
_LIGHTNINGS = {
    *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states"),
    *("lr_schedulers", "hparams_name", "hyper_parameters", "hparams_type"),
}


def check_policy(checkpoint: Mapping[str, Any], identity: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse the checkpoint of another policy, before anything is overwritten.

    Args:
        checkpoint: The loaded checkpoint; without ``state_dict`` where the strategy has loaded the weights already.
        identity: Identity of this run's policy.
        weights: Weights of this run, by name.

    Raises:
        InputError: If the checkpoint does not say which policy it holds, holds another one, or one that is not finite.
    """
    saved = checkpoint.get("policy")
    if saved is None:
        raise InputError("The checkpoint must come from PSPOModule; it does not say which policy it holds.")
    expected, actual = dict(identity), {name: saved.get(name) for name in identity}
    if "state_dict" in checkpoint:
        expected, actual = expected | _shapes(weights), actual | _shapes(checkpoint["state_dict"])
    for name in [*expected, *actual]:
        if actual.get(name) != expected.get(name):
            label = "the fingerprint of the base model's files" if name == "base" else name
            raise InputError(
                f"The checkpoint is of another model ({saved['model_name_or_path']}): "
                f"{label} is {actual.get(name)} in the checkpoint and {expected.get(name)} in this run."
            )
    _check_finite(checkpoint.get("state_dict", {}))


def check_callbacks(checkpoint: Mapping[str, Any], adding: Sequence[str] = ()) -> None:
    """Refuse to save what could not be read back: a checkpoint is read without running code.

    Args:
        checkpoint: The checkpoint that is to be saved.
        adding: Names of the callbacks that may have added entries of their own to it.

    Raises:
        InputError: The state of a callback, or an entry of one, holds other objects than numbers, texts, tensors and
            containers of them.
    """
    for name, state in checkpoint.get("callbacks", {}).items():
        _check_readable(state, f"`state_dict` of the callback {name} must return a dict")
    for name in checkpoint.keys() - _LIGHTNINGS:
        entry = (
            f"`on_save_checkpoint` of the callback {' or '.join(adding)} must give the checkpoint's {name!r} a value"
        )
        _check_readable({name: checkpoint[name]}, entry)


def _check_readable(state: Any, rule: str) -> None:
    file = io.BytesIO()
    try:
        if not isinstance(state, dict):
            raise TypeError(f"it is a {type(state).__name__}")
        torch.save(tree_map_only(Tensor, lambda _: None, state), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # pickle raises what the objects raise
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition(". Please")[0]  # no advice of torch
        reason = one_line(TypeError(reason))[:120]
        raise InputError(
            f"{rule} of numbers, texts, tensors and containers of them, or no checkpoint could be resumed from, got "
            f"one that cannot be kept: {reason}."
        ) from error


def save_optimizer_settings(checkpoint: dict[str, Any], optimizer: Optimizer) -> None:
    """Add the optimiser's settings to a checkpoint, for ``check_optimizer`` where a strategy stores its state apart."""
    checkpoint["optimizer"] = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}


def check_optimizer(checkpoint: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuse settings of a new optimiser that differ from the checkpoint's, which would silently replace them.

    Raises:
        InputError: They differ, or the checkpoint has no optimiser, with which the run would begin anew.
    """
    states = checkpoint.get("optimizer_states")
    try:
        if "state_dict" in checkpoint and not states:  # a sharded strategy has loaded both already
            raise KeyError
        group = dict(states[0]["param_groups"][0] if states else checkpoint["optimizer"])
    except (LookupError, TypeError, ValueError):
        raise InputError(
            "`ckpt_path` must hold the optimiser's state to go on with a run, got a checkpoint without it, as of "
            "Lightning's save_weights_only: evaluate or export it, or train from its export."
        ) from None
    if states:
        _check_moments(states[0].get("state") or {}, checkpoint.get("state_dict", {}))
    for name, value in optimizer.param_groups[0].items():
        if name == "fused" and value is None:  # chosen by the device where the run began, and kept
            continue
        saved = group.get("initial_lr" if name == "lr" else name)  # the schedule has moved "lr"
        if name != "params" and saved != value:
            raise InputError(
                f"`model.optimizer` must be that of the run which is resumed, {name}={saved}, got {value}: set it back "
                "or start a new run."
            )


def check_precision(checkpoint: Mapping[str, Any], precision: str) -> None:
    """Warn of a run that goes on in another precision than before, as on another device."""
    saved = checkpoint.get("precision", precision)
    if saved != precision:
        rank_zero_warn(
            f"The checkpoint was trained in {saved}, and this run goes on in {precision}: set trainer.precision to "
            f"{saved} to continue the same run."
        )


def save_controller(checkpoint: dict[str, Any], controller: AlphaController | None) -> None:
    """Add the alpha controller's state, and which one it is, to a checkpoint."""
    if controller is not None:
        checkpoint["alpha_controller"] = {"name": type(controller).__name__, "state": controller.state_dict()}


def restore_controller(checkpoint: Mapping[str, Any], controller: AlphaController | None) -> None:
    """Restore the alpha controller's state; refuse a checkpoint with another controller, or with none."""
    saved = checkpoint.get("alpha_controller", {})
    name = None if controller is None else type(controller).__name__
    if saved.get("name") != name:
        raise InputError(
            f"`alpha_controller` must be that of the run which is resumed, {saved.get('name')}, got {name}."
        )
    if controller is not None:
        controller.load_state_dict(saved["state"])


def check_solutions(checkpoint: Mapping[str, Any], checksum: int | None) -> None:
    """Refuse a checkpoint of training on other solutions; ``checksum`` is this run's, None if it has no solutions."""
    saved = checkpoint.get("solutions")
    if saved is not None and checksum is not None and saved != checksum:
        raise InputError("The checkpoint was made with other solutions: a resumed run must learn from the same ones.")
    if (saved is None) != (checksum is None):
        kind = "SupervisedModule" if checksum is None else "PSPOModule"
        raise InputError(
            f"The checkpoint is of {kind}, and another module cannot resume it: start a new run from its exported "
            "folder (`lightning-pspo export`, then `--model.policy.model_name_or_path`)."
        )


def _check_moments(states: Mapping[int, Mapping[str, Any]], weights: Mapping[str, Tensor]) -> None:
    """Refuse moments that are not finite, not of a weight, or negative where they are means of squares.

    A sharded strategy has taken the weights out.
    """
    shapes = {tensor.shape for tensor in weights.values()}
    for index, state in states.items():
        moments = {name: state[name] for name in _MOMENTS if isinstance(state.get(name), Tensor)}
        _check_finite({f"{name} of parameter {index}": moment for name, moment in moments.items()})
        for name, moment in moments.items():
            if shapes and moment.shape not in shapes:
                raise InputError(
                    f"`ckpt_path` must hold moments of its weights, got {name} of parameter {index} of "
                    f"{tuple(moment.shape)}."
                )
        if "exp_avg_sq" in moments and (moments["exp_avg_sq"] < 0).any():
            raise InputError(f"`ckpt_path` must hold means of squares, got exp_avg_sq of parameter {index} below 0.")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.element_size() > 1 and not torch.isfinite(tensor).all():
            raise InputError(f"`ckpt_path` must hold finite values, got NaN or infinity in {name}: use an earlier one.")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
