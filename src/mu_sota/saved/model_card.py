"""The model card: the page that the Hugging Face hub shows of a model, with the figures of its run."""

import json
import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedTokenizerFast

from mu_sota.common import environment
from mu_sota.common.text import readable
from mu_sota.data.tokenizer import is_word_level
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.modeling import MuForCausalLM

# What the names of data stand for.
_KNOWN = {
    "pydocs": "pydocs, the English prose that a Python installation carries: its language reference and the docstrings "
    "of its standard library",
    "wikitext-2": "WikiText-2 (raw), articles of the English Wikipedia",
}
_TAUGHT = (
    "The blocks were taught what their names say while the model was trained. How far each carries it is to be "
    "measured: `mu-sota inspect`."
)
_UNTAUGHT = "The names are intentions. Nothing forces a block to carry what its name says; that is to be measured."
_FIGURES = {
    "perplexity": "perplexity per token",
    "word_perplexity": "perplexity per word",
    "bits_per_byte": "bits/byte",
}


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
        f"{config.max_position_embeddings} positions that it was trained on.",
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
        _TAUGHT if record.get("settings", {}).get("grounding", 0) else _UNTAUGHT,
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
    score, baseline = best["validation"], record["unigram"]
    lines += [
        f"## Figures of epoch {best['epoch']}, the best by validation loss",
        "",
        f"On the validation split: {score['num_tokens']:,} tokens, {score['num_words']:,} words, "
        f"{score['num_bytes']:,} bytes, each token predicted once, in windows of {settings['window']}.",
        "",
        "| | this model | unigram model on the same tokens |",
        "|---|---:|---:|",
        f"| loss, nats per token | {readable(score['loss'], 4)} | {readable(baseline['loss'], 4)} |",
        f"| accuracy | {score['accuracy']:.2%} | {baseline['accuracy']:.2%} |",
        *(f"| {title} | {_figure(score[key])} | {_figure(baseline[key])} |" for key, title in _FIGURES.items()),
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
