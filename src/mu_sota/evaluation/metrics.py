"""Loss, accuracy, perplexity per token and word, and bits per byte of a split, every token predicted exactly once."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mu_sota.data.corpus import Split
from mu_sota.data.windows import EvalWindows

FIGURES = ("loss", "accuracy", "perplexity", "word_perplexity", "bits_per_byte")

_LONG_WORDS = 20
"""Bytes per word, on average, above which white space hardly separates words. English has about 6."""


@dataclass(frozen=True)
class Score:
    """Scores of a model on a split.

    Attributes:
        nll: summed negative log-likelihood of all predicted tokens, in nats.
        num_correct: tokens that were the most probable one.
        num_tokens: predicted tokens: all of the split, ends of documents included.
        num_words: whitespace-separated words of the split's text.
        num_bytes: UTF-8 bytes of the split's text.
    """

    nll: float
    num_correct: int
    num_tokens: int
    num_words: int
    num_bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.num_tokens

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right."""
        return self.num_correct / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens). Compares only between models with the same tokenizer."""
        return _exp(self.loss)

    @property
    def word_perplexity(self) -> float:
        """exp(nll / words). Compares across tokenizers."""
        return _exp(self.nll / self.num_words)

    @property
    def bits_per_byte(self) -> float:
        """nll / (ln 2 x bytes). Compares across tokenizers."""
        return self.nll / (math.log(2) * self.num_bytes)

    @property
    def remarks(self) -> list[str]:
        """Sentences that warn the reader of these figures; of most texts there are none."""
        sentences = []
        too_large = "is too large for a number"
        if not math.isfinite(self.nll):
            sentences.append("the loss is not finite: the model's weights are damaged, or its training diverged")
        elif not math.isfinite(self.perplexity):
            sentences.append(f"perplexity has no figure: exp of {self.loss:,.0f} nats a token {too_large}")
        elif not math.isfinite(self.word_perplexity):
            sentences.append(
                f"perplexity per word has no figure: exp of {self.nll / self.num_words:,.0f} nats a word {too_large}"
            )
        if (length := self.num_bytes / self.num_words) >= _LONG_WORDS:
            sentences.append(
                f"words, separated by white space, have {length:,.0f} bytes here on average, so perplexity per word "
                f"says little: compare by bits per byte"
            )
        return sentences

    def as_dict(self) -> dict[str, Any]:
        """All figures, for records; one that is not finite is None, and `remarks` says why."""
        figures = {name: getattr(self, name) for name in FIGURES} | vars(self)
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        return finite | ({"remarks": self.remarks} if self.remarks else {})


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    split: Split,
    *,
    window: int,
    stride: int,
    batch_size: int,
    progress: Callable[[list[range]], Iterable[range]] = iter,
) -> Score:
    """Score a causal language model on a split, in the model's own precision, on its own device.

    With `torch.distributed` running, every process must call it, takes its share of the windows, and returns the same
    score.

    Args:
        model: takes `input_ids` [B, T], `shift_labels` [B, T], `num_items_in_batch` and `skip_logits`; returns `loss`,
            summed over the labels and divided by `num_items_in_batch`, and `num_correct`.
        split: to predict, all but its first token.
        window: tokens that a prediction can see at most.
        stride: new tokens that a window predicts; below `window`, each has at least window - stride tokens of context.
        batch_size: windows at once.
        progress: wraps the list of batches, as `tqdm` does.
    """
    windows = EvalWindows(split.tokens, window, stride)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = range(rank, len(windows), world)
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nll, correct = 0.0, 0
    for batch in progress(batches):
        items = [windows[index] for index in batch]
        ids = torch.stack([item["input_ids"] for item in items]).to(device)
        labels = torch.stack([item["shift_labels"] for item in items]).to(device)
        output = model(input_ids=ids, shift_labels=labels, num_items_in_batch=1, skip_logits=True)
        nll += output.loss.item()
        correct += int(output.num_correct)
    model.train(was_training)
    if world > 1:
        total = torch.tensor([nll, correct], dtype=torch.float64, device=device)
        dist.all_reduce(total)
        nll, correct = total[0].item(), int(total[1])
    return score_of(split, nll, correct)


def score_of(split: Split, nll: float, num_correct: int) -> Score:
    """The score of a model whose predictions of a split sum to `nll` nats; a split without words counts as one word."""
    return Score(nll, num_correct, split.n_predicted, max(split.n_words, 1), max(split.n_bytes, 1))


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)  # NaN stays NaN
