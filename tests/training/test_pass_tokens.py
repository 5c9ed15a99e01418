"""The tokens of a pass are a run's own choice once, and those of its checkpoint from then on."""

from pathlib import Path

import torch

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
