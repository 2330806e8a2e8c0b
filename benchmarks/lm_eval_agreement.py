"""Do lm-evaluation-harness and `mu-sota evaluate` agree? Both on one trained model and the same texts, side by side.

    python benchmarks/lm_eval_agreement.py runs/quickstart pydocs valid.txt --window 128 --out docs/results/lm-eval.json

The harness runs on the exported folder, offline, with the task of docs/examples/lm-eval, in the Python that --python
names; mu_sota need not be installed there. `pydocs` is the test split of the embedded corpus, once as documents and
once as a single one. Why they differ where they do is measured too: see `compare`.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils.logging import disable_progress_bar

from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.data.corpus import Split, load_corpus, load_file
from mu_sota.data.tokenizer import is_word_level
from mu_sota.evaluation.metrics import evaluate
from mu_sota.saved.export import export_model
from mu_sota.saved.load_save import load_trained

TASK = "local_text"
TASK_FOLDER = Path(__file__).resolve().parents[1] / "docs" / "examples" / "lm-eval"
FIGURES = ("word_perplexity", "byte_perplexity", "bits_per_byte")
BATCH_SIZE = 16


def harness(model: Path, text: Path, window: int, python: str, workspace: Path) -> dict[str, float]:
    """The figures of lm-evaluation-harness for the exported `model` on `text`, from a process of `python`."""
    arguments = {
        "--model": "hf",
        # Version 0.4.13 confuses windows with the same tokens, of which one is scored in part, in its cache of logits.
        "--model_args": f"pretrained={model},trust_remote_code=True,max_length={window},logits_cache=False",
        "--tasks": TASK,
        "--include_path": str(TASK_FOLDER),
        "--metadata": json.dumps({"text": str(text)}),
        "--device": "cpu",
        "--batch_size": str(BATCH_SIZE),
        "--output_path": str(workspace / "harness.json"),
    }
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(workspace / "huggingface")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
    command = [python, "-m", "lm_eval", "run", *(part for pair in arguments.items() for part in pair)]
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lm_eval ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    (written,) = workspace.glob("harness*.json")  # the harness adds the time to the name
    figures = json.loads(written.read_text(encoding="utf-8"))["results"][TASK]
    written.unlink()
    return {name: figures[f"{name},none"] for name in FIGURES}


def command_line(model: Path, text: Path, window: int) -> dict[str, Any]:
    """What `mu-sota evaluate --json` prints for a file."""
    done = subprocess.run(
        [sys.executable, "-m", "mu_sota", "evaluate", str(model), f"--data={text}", f"--window={window}", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures | {"byte_perplexity": 2 ** figures["bits_per_byte"]}


def compare(model: Path, text: Path, window: int, python: str, workspace: Path) -> dict[str, Any]:
    """Both programs on one .txt or .jsonl file, and how far they are apart.

    `evaluate` takes a text as one stream: <BOS>, then every document with its <EOS>. The harness starts every document
    anew with <BOS> and predicts no <EOS>, for in text nothing is parsed as a special token. So there is a third set of
    figures, `evaluate_as_harness`: of our own evaluation, by the conventions of the harness. From it to `evaluate`, in
    nats:

    * `ends`: what the <EOS> of the documents cost, each document by itself. With them goes that the last window of a
      document, which is moved back to be full, ends one token later.
    * `context`: what it changes that a document follows others, in their windows, instead of starting anew.
    """
    theirs = harness(model, text, window, python, workspace)
    ours = command_line(model, text, window)

    loaded, tokenizer = load_trained(model)
    assert not is_word_level(tokenizer), "the word vocabulary ends lines, not documents"
    split = load_file(text, tokenizer)
    start, stream = split.tokens[:1], split.tokens[1:]
    documents = np.split(stream, np.flatnonzero(stream == tokenizer.eos_token_id) + 1)[:-1]
    assert len(documents) == split.n_documents

    def nats(tokens: np.ndarray) -> float:
        piece = Split(np.concatenate([start, tokens]), split.n_words, split.n_bytes, 1)
        return evaluate(loaded, piece, window=window, stride=window, batch_size=BATCH_SIZE).nll

    apart = sum(nats(document) for document in documents)
    without_ends = sum(nats(document[:-1]) for document in documents)
    same = {
        "word_perplexity": math.exp(without_ends / split.n_words),
        "byte_perplexity": math.exp(without_ends / split.n_bytes),
        "bits_per_byte": without_ends / (math.log(2) * split.n_bytes),
    }
    return {
        "documents": split.n_documents,
        "words": split.n_words,
        "bytes": split.n_bytes,
        "tokens": split.n_predicted,
        "harness": theirs,
        "evaluate": {name: ours[name] for name in FIGURES},
        "evaluate_as_harness": same,
        "harness_over_evaluate_less_1": {name: theirs[name] / ours[name] - 1 for name in FIGURES},
        "harness_over_evaluate_as_harness_less_1": {name: theirs[name] / same[name] - 1 for name in FIGURES},
        "nats": {
            "evaluate": ours["nll"],
            "evaluate_as_harness": without_ends,
            "ends": apart - without_ends,
            "context": ours["nll"] - apart,
        },
    }


def _pydocs(model: Path, workspace: Path) -> list[Path]:
    """The test split of `pydocs`, as documents and as one."""
    _, tokenizer = load_trained(model)
    stream = load_corpus("pydocs", tokenizer=tokenizer, cache_dir=workspace / "cache").test.tokens[1:]
    ends = np.flatnonzero(stream == tokenizer.eos_token_id)
    texts = [str(tokenizer.decode(part, skip_special_tokens=True)) for part in np.split(stream, ends + 1)[:-1]]
    files = [workspace / "pydocs-test.jsonl", workspace / "pydocs-test.txt"]
    files[0].write_bytes("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    files[1].write_bytes("\n".join(texts).encode())
    return files


def _versions(python: str) -> dict[str, str]:
    """Of the packages that the harness ran with."""
    ask = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    packages = ("lm_eval", "torch", "transformers", "tokenizers", "datasets")
    return dict(json.loads(subprocess.check_output([python, "-c", ask, *packages], text=True)))


def main() -> None:
    """Export, run both, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the --out of a training run with a byte-level BPE")
    parser.add_argument("texts", nargs="+", help=".txt or .jsonl files, or pydocs")
    parser.add_argument("--window", type=int, required=True, help="tokens seen at once")
    parser.add_argument("--python", default=sys.executable, help="a Python with lm_eval. Default: this one")
    parser.add_argument("--out", type=Path, help="JSON record")
    arguments = parser.parse_args()

    disable_progress_bar()
    results = {}
    with tempfile.TemporaryDirectory() as place:
        workspace = Path(place)
        model = workspace / "exported"
        export_model(arguments.run, model)
        files = [
            file
            for text in arguments.texts
            for file in (_pydocs(model, workspace) if text == "pydocs" else [Path(text).resolve()])
        ]
        print("relative differences: the harness against evaluate, and against evaluate by the harness's conventions")
        for file in files:
            result = compare(model, file, arguments.window, arguments.python, workspace)
            results[file.name] = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **result}
            nats = result["nats"]
            print(
                f"{file.name}: {result['documents']} documents, {result['words']:,} words, {result['bytes']:,} bytes; "
                f"{nats['evaluate']:,.2f} nats, {nats['ends']:.2f} of them for ends, {nats['context']:.2f} for context"
            )
            for name in FIGURES:
                print(
                    f"  {name:16} harness {result['harness'][name]:14.5f}   evaluate {result['evaluate'][name]:14.5f}"
                    f"   {result['harness_over_evaluate_less_1'][name]:+.1e}"
                    f"   {result['harness_over_evaluate_as_harness_less_1'][name]:+.1e}",
                    flush=True,
                )
    if arguments.out is not None:
        names = " ".join(Path(text).name for text in arguments.texts)
        write_json(
            arguments.out,
            {
                "what": "lm-evaluation-harness and mu-sota evaluate on one exported model",
                "command": f"python benchmarks/lm_eval_agreement.py {arguments.run.name} {names} "
                f"--window {arguments.window} --python PYTHON --out {arguments.out.name}",
                "harness_command": "python -m lm_eval run --model hf --model_args "
                f"pretrained=EXPORTED,trust_remote_code=True,max_length={arguments.window},logits_cache=False "
                f"--tasks {TASK} "
                f"--include_path docs/examples/lm-eval --metadata text=FILE --device cpu --batch_size {BATCH_SIZE}",
                "window": arguments.window,
                "harness_versions": _versions(arguments.python),
                "texts": results,
                "machine": environment.describe(),
            },
        )


if __name__ == "__main__":
    main()
