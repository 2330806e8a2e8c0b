"""A trained model as a folder that `transformers` loads without this package: weights, tokenizer, code, model card."""

import os
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from mu_sota.common.files import replacing
from mu_sota.common.outside import in_one_sentence, reason_of, require_file
from mu_sota.model import modeling as model_module
from mu_sota.model.errors import InputError
from mu_sota.settings.sampling import Sampling

from .load_save import load_trained, save_trained
from .model_card import model_card
from .run_record import METRICS_FILE, RUN_FILE, best_epoch, inspection_folder, record_of

AUTO_MAP = {
    "AutoConfig": "configuration.MuConfig",
    "AutoModel": "modeling.MuModel",
    "AutoModelForCausalLM": "modeling.MuForCausalLM",
    # `transformers serve` asks for this one first, then only for architectures that are part of transformers. Where a
    # decision is wanted of it, transformers takes a model without a head for decisions by its next-token logits.
    "AutoModelForDecision": "modeling.MuForCausalLM",
}
# A model that was trained on plain text continues what it is given; nothing is said of who is speaking.
CHAT_TEMPLATE = "{{ messages | map(attribute='content') | join('\\n') }}"
_LICENCE = "# Part of mu-sota, under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0\n\n"


def export_model(folder: Path, out: Path) -> Path:
    """Write the model of a run, or of a folder in Hugging Face layout, to the new folder `out`, and return its path.

    It loads with `trust_remote_code=True` where this package is not installed, and without where it is. The code is
    that of this package: it runs only when whoever loads it says so.

    Raises:
        InputError: there is no MU model in `folder`, its record cannot be read, or `out` cannot be a new folder.
    """
    # With "..", a path can lead to a folder that is there through one that is not.
    out = Path(os.path.normpath(out))
    if os.path.lexists(out):
        raise InputError(f"{out} is there already; give --out a new folder, or remove that one")
    if not out.name.isprintable():
        raise InputError(f"--out is {str(out)!r}, and a model's name has no line ends or control characters")
    model, tokenizer = load_trained(folder)
    failure = f"{RUN_FILE} or {METRICS_FILE} of {folder} is not a record that this version understands"
    remedy = "put back a copy of it"
    with in_one_sentence(failure, remedy):
        metrics = inspection_folder(folder).with_name(METRICS_FILE)
        if os.path.lexists(metrics):
            require_file(metrics)
        record, best = record_of(folder), best_epoch(folder)
        # What the run's own samples were drawn with, so that a pipeline gives text like theirs.
        settings = {key: value for key, value in record.get("settings", {}).items() if key in Sampling.model_fields}
        sampling = Sampling(**settings)
    try:
        card = model_card(model, tokenizer, record, best, out.name)
        str(card).encode("utf-8")  # as it will be written
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{failure} ({reason_of(error)}); {remedy}") from error
    model.config.auto_map = AUTO_MAP
    # As `tokenizer` makes them; a folder may come from elsewhere. Only what stands in both places is saved.
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    with replacing(out) as fresh:
        save_trained(model, tokenizer, sampling, fresh)
        for source in (str(model_module.__file__), *get_relative_import_files(str(model_module.__file__))):
            code = Path(source).read_text(encoding="utf-8")
            (fresh / Path(source).name).write_text(_LICENCE + code, encoding="utf-8")
        card.save(fresh / "README.md")
    return out
