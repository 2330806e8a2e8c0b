"""The states of words, held against passes over one window at a time."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mu_sota import MuForCausalLM
from mu_sota.data.tokenizer import train_bpe
from mu_sota.inspection.block_states import word_states
from mu_sota.inspection.labelled_text import Document, Word
from mu_sota.inspection.tracing import trace
from mu_sota.model.blocks import split_blocks
from mu_sota.model.configuration import MuConfig

TEXTS = ("the state reads a block", "Unbelievable, isn't it?", "x")


def documents() -> list[Document]:
    """Words between white space; one is cut in two, as a treebank cuts a contraction."""
    made = []
    for number, text in enumerate(TEXTS):
        words, start = [], 0
        for index, part in enumerate(text.replace("isn't", "is n't").split()):
            start = text.index(part, start)
            words.append(Word(part, start, start + len(part), 0, index))
            start += len(part)
        made.append(Document(str(number), None, text, words))
    return made


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe(["the state reads a block the state reads a block isn't it"], 280)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> MuForCausalLM:
    torch.manual_seed(0)
    form: dict[str, Any] = {"position_encoding": "rotary", "norm_placement": "before", "induction_tables": 1}
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 16}
    return MuForCausalLM(MuConfig(**sizes, **form)).eval()


def test_states_are_those_of_each_words_last_token(model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    found = word_states(model, tokenizer, documents(), window=16, places=(0, 1, 2), batch_size=2)
    ids, ends = [tokenizer.bos_token_id], []
    for document in documents():
        beginnings = [document.text[: word.end] for word in document.words]
        ends += [len(ids) + len(tokenizer(beginning)["input_ids"]) - 1 for beginning in beginnings]
        ids += [*tokenizer(document.text)["input_ids"], tokenizer.eos_token_id]
    assert len(found.words) == len(ends) == 10
    for number, end in enumerate(ends):
        window = ids[end // 16 * 16 :][:16]
        traced = trace(model, window)
        expected = split_blocks(traced.states[:, end % 16])
        torch.testing.assert_close(found.states[:2, number], expected[:2])
        torch.testing.assert_close(found.states[2, number], split_blocks(model.model.norm(traced.states[2, end % 16])))
        assert found.positions[number] == end % 16
    assert found.numbers.tolist() == [0] * 5 + [1] * 4 + [2]


def test_another_models_states_are_cut_into_slices(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=36, n_layer=1, n_head=2)
    found = word_states(GPT2LMHeadModel(config).eval(), tokenizer, documents(), window=16, places=[1])
    assert found.states.shape == (1, 10, 16, 2), "the last 4 of 36 values are left out"
