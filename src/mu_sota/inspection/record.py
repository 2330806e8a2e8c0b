"""All that is measured of one model, as a record: a map of a text, what blocks do, whether they differ, what they hold.

Legend: L layers, T tokens, N = 16 blocks, S values a block.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mu_sota.data.corpus import Corpus
from mu_sota.data.tokenizer import encode
from mu_sota.model.blocks import BLOCKS, split_blocks
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM

from .block_states import WordStates, token_states, word_states
from .effects import block_effects
from .labelled_text import SUFFIXES, Document, plain_documents, read_labelled
from .legibility import Legibility, measure_legibility
from .lens import logit_lens
from .lexicons import refuse_missing
from .similarity import block_similarity
from .steering import STRENGTH, directions, measure_steering
from .targets import TAUGHT, block_targets
from .tasks import Task, all_tasks
from .tracing import trace
from .word_clusters import word_clusters

MAP_TOKENS = 48
_PIECES = 32
_CLUSTERS = 16
_ATTENDED = 3
_STEERED_TOKENS = 100_000

Progress = Callable[[str, Sequence[Any]], Iterable[Any]]
"""Given a title and what there is to do, gives it one by one and shows how far it is."""


@dataclass(frozen=True)
class LabelledTexts:
    """Documents to fit probes to and to test them on.

    Attributes:
        documents: all of them.
        fitted: for each, true if probes are fitted to it.
        source: for people, where they are from.
    """

    documents: list[Document]
    fitted: np.ndarray
    source: str


def labelled_folder(folder: Path) -> LabelledTexts:
    """All .conllu and .conll files of a folder: those with `test` in their name to test on, the others to fit to.

    Raises:
        InputError: there is no such folder, it has not both, or a file cannot be read.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    parts = ["test" not in path.name for path in files]
    if len(set(parts)) < 2:
        raise InputError(
            f"--labels is {folder}, which has not both: .conllu or .conll files with 'test' in their name, to test "
            f"probes on, and others, to fit them to"
        )
    documents, fitted = [], []
    for path, part in zip(files, parts, strict=True):
        read = read_labelled(path)
        documents += read
        fitted += [part] * len(read)
    return LabelledTexts(documents, np.array(fitted), ", ".join(path.name for path in files))


def unlabelled(corpus: Corpus) -> LabelledTexts:
    """The validation split, of whose words some can be asked: every other piece to fit to, the rest to test on."""
    documents = plain_documents(_text(corpus.validation.tokens, corpus.tokenizer))
    return LabelledTexts(documents, np.arange(len(documents)) % 2 == 0, "the validation split, which nobody labelled")


def tasks_of(corpus: Corpus) -> list[Task]:
    """All tasks; words are grouped by their neighbours in the training split."""
    return all_tasks(word_clusters([_text(corpus.train.tokens, corpus.tokenizer)], _CLUSTERS))


def inspect_model(
    model: PreTrainedModel,
    corpus: Corpus,
    labelled: LabelledTexts,
    text: str | None,
    window: int,
    layer: int,
    grounded: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Measure a model. Of one that has no blocks, only what holds of any 16 slices of its state.

    Args:
        model: in eval mode.
        corpus: whose tokenizer the model has; effects and similarity are measured on its validation split, and words
            are grouped by their neighbours in its training split.
        labelled: to fit and test probes.
        text: to map; by default the beginning of the validation split.
        window: tokens that the model reads at once.
        layer: after which blocks are compared and probed, 0 to L.
        grounded: True if its blocks were taught what they are named for.
        progress: shows how far it is.

    Raises:
        InputError: too little text for any question, or a package of word lists is missing.
    """
    refuse_missing()
    tokenizer = corpus.tokenizer
    if isinstance(model, MuForCausalLM):  # first what can be refused at once
        pieces = _pieces(corpus.validation.tokens, window)
        shown = encode(tokenizer, text) if text is not None else corpus.validation.tokens[1:]
        shown = shown[: min(MAP_TOKENS, window) - 1]  # <BOS> comes before
        mapped = text_map(model, tokenizer, shown.tolist())
    tasks = tasks_of(corpus)
    states, found = asked(model, tokenizer, labelled, tasks, window, layer, progress)
    record: dict[str, Any] = {
        "blocks": [block._asdict() for block in BLOCKS],
        "layers": model.config.num_hidden_layers,
        "layer": layer,
        "window": window,
        "labels": labelled.source,
        "taught": {name: teaching._asdict() for name, teaching in TAUGHT.items()} if grounded else {},
        "not_asked": [task.name for task in tasks if task.name not in {result.task.name for result in found.results}],
        "legibility": found.as_dict(),
        "similarity": block_similarity(states.states[0]).as_dict(),
    }
    if isinstance(model, MuForCausalLM):
        effects = block_effects(
            model, pieces, batch_size=_PIECES // 8, progress=lambda todo: progress("Blocks replaced", todo)
        )
        if layer < model.config.num_hidden_layers:  # the last states are after the norm, where nothing can be moved
            record |= {"steering": steering(model, corpus, window, layer, progress)}
        record |= {"map": mapped, "effects": effects.as_dict()}
    return record


def asked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    labelled: LabelledTexts,
    tasks: Sequence[Task],
    window: int,
    layer: int,
    progress: Progress,
) -> tuple[WordStates, Legibility]:
    """The states of labelled words after a layer, and what probes read off them."""
    states = word_states(
        model, tokenizer, labelled.documents, window, [layer], progress=lambda todo: progress("Labelled texts", todo)
    )
    return states, measure_legibility(states, labelled.fitted, tasks, layer, lambda todo: progress("Probes", todo))


def steering(model: MuForCausalLM, corpus: Corpus, window: int, layer: int, progress: Progress) -> dict[str, Any]:
    """Where blocks can be steered after a layer, by the training split; what that does, on the validation split."""
    pieces = _pieces(corpus.validation.tokens, window)[:: _PIECES // 8]
    text = corpus.train.tokens[:_STEERED_TOKENS]
    (blocks,) = token_states(
        model, text.tolist(), window, [layer], progress=lambda todo: progress("Words to steer by", todo)
    )
    known = directions(blocks, block_targets(text, corpus.tokenizer))
    measured = measure_steering(
        model, corpus.tokenizer, pieces, layer, known, lambda todo: progress("Blocks steered", todo)
    )
    return {"place": layer, "strength": STRENGTH, "directions": measured}


def text_map(model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> dict[str, Any]:
    """What each layer does at each token of a text: see the keys.

    Returns:
        `tokens`, T texts; `log_probs`, in nats, of each after those before it, None for the first; of each layer
        `sensitivities` [L, T, N], `norms` [L + 1, T, N], root mean square of a block, and `attended` [L, T, N]: the
        positions that a block's attention weighs most, with their weights; `lens` [L + 1, T], the likeliest next tokens
        if the model ended there, and `alone` [L + 1, T, N], the tokens that a block by itself raises most.

    Raises:
        InputError: the text has no tokens.
    """
    if not ids:
        raise InputError("--text is empty; give a few words")
    ids = [tokenizer.bos_token_id, *ids]
    traced = trace(model, ids)
    layers, positions = len(traced.sensitivities), range(len(ids))
    read = logit_lens(model, ids, positions, top=_ATTENDED)

    def words(tokens: Tensor) -> Any:
        return [words(part) for part in tokens] if tokens.dim() else tokenizer.decode([int(tokens)])

    def most(weights: Tensor) -> list[list[tuple[int, float]]]:
        """Of attention weights [N, T], for each block."""
        top = weights.topk(min(_ATTENDED, weights.shape[-1]))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [[(at, round(weight, 3)) for at, weight in zip(*pair, strict=True)] for pair in pairs]

    return {
        "tokens": words(traced.ids),
        "log_probs": [None, *_rounded(traced.log_probs[1:])],
        "sensitivities": _rounded(traced.sensitivities),
        "norms": _rounded(split_blocks(traced.states).square().mean(-1).sqrt()),
        "attended": [
            [most(traced.attention(position, layer).block) for position in positions] for layer in range(1, layers + 1)
        ],
        "lens": {"tokens": words(read.top_ids), "log_probs": _rounded(read.top_log_probs)},
        "alone": {"tokens": words(read.block_ids), "rises": _rounded(read.block_rises)},
    }


def _rounded(values: Tensor) -> Any:
    return np.round(values.double().numpy(), 4).tolist()


def _text(tokens: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def _pieces(tokens: np.ndarray, window: int) -> Tensor:
    """Pieces of a split from all over it, [P, window + 1].

    Raises:
        InputError: it has not two of them.
    """
    starts = np.linspace(0, len(tokens) - window - 1, _PIECES).astype(int)
    if len(tokens) < 2 * (window + 1):
        raise InputError(
            f"the validation split has {len(tokens)} tokens; effects of blocks need {2 * (window + 1)}: give more text"
        )
    return torch.stack([torch.from_numpy(tokens[start : start + window + 1].astype(np.int64)) for start in starts])
