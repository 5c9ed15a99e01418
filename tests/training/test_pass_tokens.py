"""The tokens of a pass are a run's own choice once, and those of its checkpoint from then on."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_pspo.training import pass_tokens
from lightning_pspo.training.pass_tokens import numbers_here
from lightning_pspo.types import Inputs
from tests.support.loop import Fit, fit  # noqa: F401


def test_a_resumed_run_has_the_passes_of_its_checkpoint(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "saved.ckpt"
    module, _ = fit(save_after={1: path}, limit=1)
    assert module.limits.micro_batch_tokens == 2048
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["micro_batch_tokens"] == 2048
    torch.save(checkpoint | {"micro_batch_tokens": 70}, path)  # as measured on a GPU
    module, _ = fit(ckpt_path=path)
    assert module.limits.micro_batch_tokens == 70
    module, _ = fit(ckpt_path=path, limits={"micro_batch_tokens": 90})
    assert module.limits.micro_batch_tokens == 90


class LoadsLate(SingleDeviceStrategy):
    """Loads a checkpoint after ``on_fit_start``, as sharded strategies do."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


def test_also_where_the_strategy_loads_it_after_the_choice(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "saved.ckpt"
    fit(save_after={1: path}, limit=1)
    torch.save(torch.load(path, weights_only=True) | {"micro_batch_tokens": 70}, path)
    module, _ = fit(ckpt_path=path, trainer_settings={"strategy": LoadsLate("cpu")})
    assert module.limits.micro_batch_tokens == 70


def test_memory_is_kept_for_the_part_of_a_weight_that_this_rank_holds() -> None:
    """Not for the whole: eight ranks would be left with an eighth of the passes, or the smallest."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        mesh = init_device_mesh("cpu", (8,))
        sharded = distribute_tensor(torch.zeros(80, 3), mesh, [Shard(0)])
        assert sharded.numel() == 240
        assert numbers_here(sharded) == 30
    finally:
        torch.distributed.destroy_process_group()
    assert numbers_here(torch.zeros(80, 3)) == 240


@pytest.mark.gpu
def test_passes_are_measured(fit: Fit) -> None:  # noqa: F811
    """On a GPU, whose memory a tiny model leaves free."""
    module, _ = fit(limit=1, trainer_settings={"accelerator": "gpu", "devices": 1})
    assert module.limits.micro_batch_tokens == 16384


class Activations(torch.autograd.graph.saved_tensors_hooks):
    """A device whose memory holds what passes keep for their gradient, and nothing else."""

    def __init__(self, free: int) -> None:
        self.kept: dict[int, tuple[Tensor, int]] = {}
        self.memory = pass_tokens.Memory(allocated=self.allocated, free=lambda: free)
        super().__init__(self.pack, lambda tensor: tensor)

    def allocated(self) -> int:
        return sum(size for _, size in self.kept.values())

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor


def inputs(rows: int) -> Inputs:
    prompts, completions = torch.full((rows, 64), 5), torch.full((rows, 448), 5)
    return Inputs(prompts, prompts > 0, completions, completions > 0, prompt_of=torch.arange(rows))


@pytest.mark.parametrize(("free", "least", "most"), [(2**20, 1024, 1024), (2**26, 2048, 15360), (2**33, 16384, 16384)])
def test_half_of_the_free_memory_is_filled(
    fit: Fit,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    least: int,
    most: int,
) -> None:
    """On a device that is simulated: a pass of the tokens that were chosen keeps what it should."""
    device = Activations(free)
    monkeypatch.setattr(pass_tokens, "memory_of", lambda _: device.memory)
    with device:
        module, _ = fit(limit=1)
    tokens = module.limits.micro_batch_tokens
    assert isinstance(tokens, int)
    assert least <= tokens <= most
    if least < most:
        device.kept.clear()
        with device:
            module.policy.logprobs(module.policy.pack(inputs(tokens // 512), shared=False), 1.0, 1.0)
        room = free - 12 * sum(weight.numel() for weight in module.policy.parameters())
        assert 0.35 * room < device.allocated() < 0.55 * room
