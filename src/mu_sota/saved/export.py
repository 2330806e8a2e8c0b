"""A trained model as a folder that `transformers` loads without this package: weights, tokenizer, code, model card."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_relative_import_files

from mu_sota.common import environment
from mu_sota.common.files import replacing
from mu_sota.data.tokenizer import is_word_level
from mu_sota.evaluation.metrics import readable
from mu_sota.model import modeling as model_module
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.settings.sampling import Sampling

from .load_save import load_trained, save_trained
from .run_record import RUN_FILE, best_epoch, record_of

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
# What the names of data stand for.
_KNOWN = {
    "pydocs": "pydocs, the English prose that a Python installation carries: its language reference and the docstrings "
    "of its standard library",
    "wikitext-2": "WikiText-2 (raw), articles of the English Wikipedia",
}
_FIGURES = {
    "perplexity": "perplexity per token",
    "word_perplexity": "perplexity per word",
    "bits_per_byte": "bits/byte",
}


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
    record, best = record_of(folder), best_epoch(folder)
    try:
        # What the run's own samples were drawn with, so that a pipeline gives text like theirs.
        settings = {key: value for key, value in record.get("settings", {}).items() if key in Sampling.model_fields}
        sampling = Sampling(**settings)
        card = model_card(model, tokenizer, record, best, out.name)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(
            f"{RUN_FILE} of {folder} is not a record that this version understands ({' '.join(str(error).split())}); "
            f"move it away to export the model without its figures"
        ) from error
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


def model_card(
    model: MuForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    record: dict[str, Any],
    best: dict[str, Any] | None,
    name: str,
) -> ModelCard:
    """The page that the Hugging Face hub shows of a model, with the figures of the run's record.

    Args:
        record: `run.json` of the run; empty where there is none, and then the card says so.
        best: the row of the best epoch in the run's `metrics.jsonl`.
        name: of the model.
    """
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["mu-sota", "custom_code"],
        eval_results=_eval_results(record, best) if best else None,
    )
    config = model.config
    vocabulary = "words of a closed vocabulary" if is_word_level(tokenizer) else "byte-level BPE"
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {name}",
        "",
        f"A causal language model of {model.num_parameters():,} parameters, made with mu-sota "
        f"{environment.version('mu-sota')}. A token's state is a matrix of {config.matrix_size} × {config.matrix_size} "
        f"values, tiled by 16 named semantic blocks. {config.num_hidden_layers} layers, a vocabulary of "
        f"{config.vocab_size:,} ({vocabulary}), texts of up to {config.max_position_embeddings} tokens.",
        "",
        "It was trained on plain text: it continues what it is given, and does not follow instructions or answer "
        "questions. Its chat template only joins the messages.",
        "",
        "## Use it",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        f'generate = pipeline("text-generation", model={json.dumps(name, ensure_ascii=False)}, trust_remote_code=True)',
        'print(generate("Once upon a time", max_new_tokens=30)[0]["generated_text"])',
        "```",
        "",
        "`trust_remote_code=True` lets the Python files of this folder run: read them first. Where mu-sota is "
        "installed, `import mu_sota` takes its place. Generation ends at the last of the "
        f"{config.max_position_embeddings} learned positions.",
        "",
        "It is a small model for research and for looking inside. What it writes is often wrong or without sense, and "
        "says what its training text would; do not rely on it.",
        "",
        "The Python files are part of mu-sota, under the Apache License 2.0. The licence of the weights is their "
        "author's to choose: add `license:` above.",
        "",
        *_training(record, best),
        "## The blocks",
        "",
        "The names are intentions. Nothing forces a block to carry what its name says; that is to be measured.",
        "",
        "| block | reserved for |",
        "|---|---|",
        *(f"| {block.name} | {block.meaning} |" for block in BLOCKS),
        "",
    ]
    return ModelCard("\n".join(lines))


def _training(record: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
    if not record:
        return ["## Training", "", "There is no record of how this model was trained.", ""]
    settings, where = record["settings"], record["machine"]
    hardware = ", ".join(where["gpus"]) or f"{where['cores']} CPU cores ({where['processor']})"
    versions = ", ".join(f"{package} {number}" for package, number in where["versions"].items() if number)
    commit = f", commit {where['commit']}" if where["commit"] else ""
    lines = [
        "## Training",
        "",
        f"- data: {_KNOWN.get(record['data'], _data_name(record))} (fingerprint `{record['data_fingerprint'][:16]}`)",
        f"- preset {record['preset']}, seed {settings['seed']}, {record['precision']}; {_recipe(settings)}",
        f"- on {hardware}; {versions}{commit}",
    ]
    if "causality" in record:
        done = [check["check"] for check in record["causality"]["checks"] if check["verdict"] == "ok"]
        lines.append(
            f"- before training, on {record['causality']['length']} random tokens a row, "
            f"no leak was found by {len(done)} checks: {', '.join(done)}"
        )
    lines.append("")
    if best is None:
        return lines
    score, floor = best["validation"], record["unigram"]
    lines += [
        f"## Figures of epoch {best['epoch']}, the best by validation loss",
        "",
        f"On the validation split: {score['num_tokens']:,} tokens, {score['num_words']:,} words, "
        f"{score['num_bytes']:,} bytes, each token predicted once, in windows of {settings['window']}.",
        "",
        "| | this model | unigram model on the same tokens |",
        "|---|---:|---:|",
        f"| loss, nats per token | {readable(score['loss'], 4)} | {readable(floor['loss'], 4)} |",
        f"| accuracy | {score['accuracy']:.2%} | {floor['accuracy']:.2%} |",
        *(f"| {title} | {_figure(score[key])} | {_figure(floor[key])} |" for key, title in _FIGURES.items()),
        "",
        "Perplexity per token compares only between models with the same tokenizer; perplexity per word and bits per "
        "byte compare across tokenizers.",
        "",
        *(f"{remark[0].upper()}{remark[1:]}.\n" for remark in score.get("remarks", [])),
        "What it made of the prompts of its run after that epoch:",
        "",
        *(f"    {json.dumps(sample['text'], ensure_ascii=False)}" for sample in best["samples"]),
        "",
    ]
    return lines


def _recipe(settings: dict[str, Any]) -> str:
    length = f"{settings['num_epochs']} epochs" if settings["max_steps"] is None else f"{settings['max_steps']} steps"
    return (
        f"{length}, batch {settings['batch_size']} × {settings['window']} tokens, AdamW, learning rate "
        f"{settings['learning_rate']:g} (one cycle), weight decay {settings['weight_decay']:g}, dropout as in "
        f"config.json"
    )


def _data_name(record: dict[str, Any]) -> str:
    """Of a path only the last part: a card is published, and folders are private."""
    name = Path(record["data"]).name
    return name if re.fullmatch(r"\w[\w.-]*", name) else "texts of the author's own"


def _figure(value: float | None) -> str:
    return readable(value, 4 if value is None or value < 1000 else 1)


def _eval_results(record: dict[str, Any], best: dict[str, Any]) -> list[EvalResult]:
    data = _data_name(record)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data,
            dataset_name=data,
            dataset_split="validation",
            metric_type=key,
            metric_name=title,
            metric_value=round(best["validation"][key], 4),
        )
        for key, title in _FIGURES.items()
        if best["validation"][key] is not None and math.isfinite(best["validation"][key])  # infinite in older records
    ]
