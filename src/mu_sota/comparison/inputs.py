"""The inputs of a comparison: settings and text, checked together before anything is sized or trained."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from mu_sota.data.corpus import Corpus, load_corpus
from mu_sota.data.options import TextOptions
from mu_sota.data.windows import TrainWindows
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.settings.load import Settings
from mu_sota.settings.presets import MODEL_KEYS
from mu_sota.settings.run import RunSettings
from mu_sota.training.before_training import check_prompts, fitted_to_tokenizer

from .request import DECIDED, Request

FORMAT = 3  # raise it when files in the folder change
_NOT_RECORDED = {*DECIDED, "micro_batch_size", "log_steps", "checkpoint_minutes", "trackers"}


@dataclass(frozen=True)
class Inputs:
    """What is asked, and what it is asked of.

    Attributes:
        request: of the user.
        run: settings of every training run, but for what the comparison decides.
        config: of MU, for the tokenizer's vocabulary.
        settings: of run and model, as they are recorded.
        corpus: the text.
        windows: of the training split.
    """

    request: Request
    run: RunSettings
    config: MuConfig
    settings: dict[str, Any]
    corpus: Corpus
    windows: TrainWindows

    def identity(self) -> dict[str, Any]:
        """What must be the same when a comparison is resumed, as `plan.json` has it."""
        return {
            "format": FORMAT,
            "request": asdict(self.request) | {"questions": list(self.request.questions)},
            "settings": self.settings,
            "data_fingerprint": self.corpus.fingerprint,
        }


def load_inputs(request: Request, settings: Settings) -> Inputs:
    """Load the text, and check that the settings fit it.

    Raises:
        InputError: the text cannot be used, the settings do not fit it, or this is one process of several.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise InputError("a comparison runs in one process: start it with mu-sota compare, without torchrun")
    run = settings.run
    corpus = load_corpus(
        request.data,
        tokenizer=run.tokenizer,
        vocab_size=settings.model.vocab_size,
        options=TextOptions.of(run.model_dump()),
    )
    windows = TrainWindows(corpus.train.tokens, run.window, run.stride)
    if len(windows) < run.batch_size:
        raise InputError(
            f"the training split has {len(windows)} windows, less than a batch of {run.batch_size}; give more text, or "
            f"lower batch_size or window with --set"
        )
    config = fitted_to_tokenizer(settings.model, corpus)
    check_prompts(run, corpus.tokenizer, config)
    recorded = run.model_dump(exclude=_NOT_RECORDED) | {
        key: getattr(settings.model, key) for key in MODEL_KEYS if key != "dropout"
    }
    return Inputs(request, run, config, recorded, corpus, windows)
