"""The embedded policy: small, read alike by everyone, skilled but unreliable."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lightning_pspo.data.sources import Procedural, held_out
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.evaluation.module import EVALUATION_NOISE
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import EMBEDDED, Policy
from lightning_pspo.training.settings import SamplingSettings

FOLDER = Path(__file__).resolve().parents[2] / "lightning_pspo" / "assets" / "tiny_policy"
CHAIN_SUM = {"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1}


def test_it_is_small_and_comes_with_its_recipe() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6
    recipe = (FOLDER / "RECIPE.md").read_text(encoding="utf-8")
    assert "scripts/pretrain_tiny_policy.py" in recipe


@pytest.mark.parametrize("text", ["4 - 1 - 7 + 7 =", "She paid $1,234.50.\n\n#### 12", "naïve ∑ 数学", r"\frac{3}{4}"])
def test_every_loader_splits_text_alike(text: str) -> None:
    ours = Policy(model_name_or_path=EMBEDDED).tokenizer
    theirs = AutoTokenizer.from_pretrained(FOLDER)
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.decode(ours(text)["input_ids"]) == text


def test_it_knows_the_skill_but_does_not_use_it_reliably() -> None:
    """Between 20 % and 55 % correct; when it works the sum out, nearly always."""
    module = PSPOModule(policy=Policy(model_name_or_path=EMBEDDED), sampling=SamplingSettings(max_new_tokens=64))
    module.configure_model()
    source = Procedural("chain_sum", size=300, seed=77, settings=CHAIN_SUM, split="test")
    data = MathDataModule(module.policy.tokenizer, val={"held_out": source}, eval_batch_size=300)
    data.setup("validate")
    (batch,) = data.val_dataloader()[0]
    assert all(held_out(problem.question) for problem in batch.problems)
    samples = module.verify(batch, module.sample(batch, 1, module.sampling, EVALUATION_NOISE))
    correct = [sample.grade.correct for sample in samples]
    worked = [sample.grade.correct for sample in samples if "=" in sample.completion]
    assert 0.20 < sum(correct) / len(correct) < 0.55
    assert 0.15 < len(worked) / len(samples) < 0.50
    assert sum(worked) / len(worked) > 0.90
    assert not any(sample.truncated for sample in samples)
