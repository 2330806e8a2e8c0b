"""The blocks of every word of labelled texts, in any causal language model.

Legend: L layers, W words, N = 16 blocks, S values a block.

A MU model has blocks; the states of another model are cut into 16 slices of equal size, as a baseline of what a slice
without a name holds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mu_sota.model.blocks import NUM_BLOCKS, split_blocks

from .labelled_text import Document, Word


@dataclass(frozen=True)
class WordStates:
    """What a model holds at the last token of each word.

    Attributes:
        documents: the texts, in order.
        words: all of theirs, W of them.
        numbers: [W], of each word's document.
        positions: [W], of each word's last token in its window.
        window: tokens of a window.
        places: where in the model: 0 is before the first layer, n after n layers; the last, L, is after the final norm.
        states: [places, W, N, S].
    """

    documents: Sequence[Document]
    words: list[Word]
    numbers: np.ndarray
    positions: np.ndarray
    window: int
    places: Sequence[int]
    states: Tensor


def word_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    window: int,
    places: Sequence[int],
    batch_size: int = 8,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> WordStates:
    """Read documents one after the other, as a split is read in training, in windows without overlap.

    A word that the tokenizer gives no token of its own has the state of the token it ends in.

    Args:
        model: any causal language model of `transformers`, in eval mode; of a state that 16 does not divide, the last
            values are left out.
        window: tokens that the model reads at once.
        places: as in `WordStates`.
        progress: wraps the batches, as `tqdm` does.
    """
    ids, last_tokens, numbers = _tokens(tokenizer, documents)
    words = [word for document in documents for word in document.words]
    states = token_states(model, ids, window, places, batch_size, progress)[:, last_tokens]
    return WordStates(documents, words, numbers, last_tokens % window, window, places, states)


@torch.no_grad()
def token_states(
    model: PreTrainedModel,
    ids: Sequence[int],
    window: int,
    places: Sequence[int],
    batch_size: int = 8,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> Tensor:
    """The blocks of every token, [places, T, N, S], read as `word_states` does."""
    windows = [torch.tensor(ids[start : start + window]) for start in range(0, len(ids), window)]
    kept: list[Tensor] = []
    *full, rest = windows
    batches = [*(torch.stack(full[at : at + batch_size]) for at in range(0, len(full), batch_size)), rest[None]]
    for batch in progress(batches):
        output: Any = model(batch.to(model.device), output_hidden_states=True, use_cache=False)
        states = torch.stack([output.hidden_states[place] for place in places]).float().cpu()  # [places, B, T, D]
        kept.append(states.flatten(1, 2))
    states = torch.cat(kept, 1)
    return split_blocks(states[..., : states.shape[-1] // NUM_BLOCKS * NUM_BLOCKS])


def _tokens(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Ids of all documents, with the place of each word's last token among them, and the number of its document."""
    ids: list[int] = [tokenizer.bos_token_id]
    last_tokens: list[int] = []
    numbers: list[int] = []
    for number, document in enumerate(documents):
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
        ends = [end for _, end in encoded["offset_mapping"]]
        token = 0
        for word in document.words:
            while token < len(ends) - 1 and ends[token] < word.end:
                token += 1
            last_tokens.append(len(ids) + token)
            numbers.append(number)
        ids += encoded["input_ids"]
        ids.append(tokenizer.eos_token_id)
    return ids, np.array(last_tokens), np.array(numbers)
