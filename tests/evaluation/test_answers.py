import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_pspo.evaluation.answers import decoded_answers
from lightning_pspo.policy.policy import Policy
from lightning_pspo.types import Problem, PromptBatch

TOKENS = ("<pad>", "</s>", "<think>", "\u2581Answer:", "\u2581####", "\u2581so", "\u25817", "8", "\n\n")
PAD, END, THINK, ANSWER, HASHES, SO, SEVEN, EIGHT, EMPTY = range(len(TOKENS))


def policy(tiny_model):
    """With a tokenizer that, as those of sentencepiece do, drops the space that begins a text."""
    raw = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<pad>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made = Policy(model_name_or_path=str(tiny_model))
    made.tokenizer = made.pretrained.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", extra_special_tokens=["<think>"]
    )
    made.eos_ids = made.pretrained.eos_ids = (END,)
    return made


def batch(last, prefix, stop_ids=()):
    ids, problem = torch.tensor([[PAD, ANSWER, last]]), Problem("1", "7?", "7")
    return PromptBatch("x", (problem,), ids, ids != PAD, torch.tensor([0]), torch.tensor([True]), prefix, stop_ids)


def test_an_answer_begins_with_the_prefix_and_keeps_its_spaces(tiny_model):
    made = policy(tiny_model)
    completions = [[SEVEN, END], [EIGHT], [THINK, SEVEN]]
    texts, raw = decoded_answers(made, batch(HASHES, "####").rows([0]).to("cpu"), completions)
    assert texts == ["#### 7", "####8", "#### 7"]
    assert raw == [None, None, "####<think> 7"]


def test_a_special_token_in_the_prefix_counts_where_special_tokens_do(tiny_model):
    texts, raw = decoded_answers(policy(tiny_model), batch(THINK, "<think>"), [[SO, END]])
    assert [text.strip() for text in texts] == ["so"]
    assert [text.replace(" ", "") for text in raw] == ["<think>so"]


def test_the_empty_line_that_ends_an_answer_is_no_part_of_it(tiny_model):
    texts, _ = decoded_answers(policy(tiny_model), batch(ANSWER, "", (EMPTY,)), [[SO, SEVEN, EMPTY]])
    assert texts == ["so 7"]
