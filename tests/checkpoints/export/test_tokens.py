"""Generation settings of an export."""

import json

import pytest

from lightning_pspo.checkpoints.export.tokens import write_generation_config
from lightning_pspo.data.prompt_encoder import PromptEncoder
from lightning_pspo.data.prompt_format import Example, FewShot, PromptFormat
from lightning_pspo.policy.policy import Policy


@pytest.mark.parametrize(("template", "ends"), [("plain", True), (None, False)])
def test_an_empty_line_ends_an_answer_as_it_did_in_the_run(template, ends, tmp_path):
    policy = Policy(model_name_or_path="embedded")
    examples = FewShot(k=1, examples=[Example(question="1 + 1?", solution="2")])
    prompt = PromptFormat(chat_template=template, few_shot=examples)
    stops = PromptEncoder(policy.tokenizer, prompt).stop_ids
    write_generation_config(policy, tmp_path, prompt.settings())
    written = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert (written if ends else [written]) == [*policy.eos_ids, *stops]
    assert bool(stops) is ends
