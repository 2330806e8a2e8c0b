"""The command line: parse, call, print. Imports are inside the commands, so that `--help` answers at once."""

import errno
import io
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mu_sota.model.errors import InputError

if TYPE_CHECKING:
    from mu_sota.leakcheck.checks import Result

app = typer.Typer(
    name="mu-sota",
    help="Train, evaluate and sample language models whose token state is a matrix of named semantic blocks.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_PRESET = "mu-sota (the full model) or quickstart (a laptop CPU)"
_DATA = "pydocs, wikitext-2, or the path of a .txt, .jsonl or .parquet file or of a folder of them"

Preset = Annotated[str, typer.Option(help=_PRESET)]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a setting; may be repeated")
]
SettingsFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings, one key: value a line")]
Folder = Annotated[Path, typer.Argument(help="the --out of a run, or a model in Hugging Face layout", metavar="DIR")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False) -> None:
    if version:
        from mu_sota import __version__

        print(__version__)
        raise typer.Exit


@app.command("train", short_help="Train a model, or go on with a run")
def _train(
    out: Annotated[Path, typer.Option(help="folder for the model, its tokenizer and the run's record")],
    preset: Annotated[str | None, typer.Option(help=f"{_PRESET}. Default: mu-sota")] = None,
    data: Annotated[str | None, typer.Option(help=f"{_DATA}. Default: pydocs")] = None,
    epochs: Annotated[int | None, typer.Option(help="same as --set num_epochs=N")] = None,
    max_steps: Annotated[int | None, typer.Option(help="same as --set max_steps=N")] = None,
    seed: Annotated[int | None, typer.Option(help="same as --set seed=N")] = None,
    assignments: Assignments = None,
    config: SettingsFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out, if there is one")] = False,
) -> None:
    """Train a model; after every epoch validate it, sample from it and keep the best.

    With --resume, all that is not given is as the run was started.
    """
    from mu_sota.settings.load import load_settings, parse_assignments

    named = {"num_epochs": epochs, "max_steps": max_steps, "seed": seed}
    overrides = parse_assignments(assignments or []) | {k: v for k, v in named.items() if v is not None}
    from mu_sota.saved.run_record import recorded

    record = recorded(out) if resume else {}
    preset = preset or record.get("preset", "mu-sota")
    data = data or record.get("data", "pydocs")
    settings = load_settings(preset, config, overrides, record.get("requested", {}))
    _quiet()
    from mu_sota.training.run import train

    try:
        train(preset, data, out, settings, resume)
    finally:
        _part_from_other_processes()


@app.command("evaluate", short_help="Perplexities and bits per byte of a text")
def _evaluate(
    folder: Folder,
    data: Annotated[str | None, typer.Option(help=f"{_DATA}. Default: what the run was trained on")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation, test, or all of a file. Default: test; of another file than the run's, all"
        ),
    ] = None,
    window: Annotated[int | None, typer.Option(help="tokens seen at once. Default: as in the run")] = None,
    stride: Annotated[int | None, typer.Option(help="new tokens per window. Default: as in the run")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="windows at once")] = 8,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
) -> None:
    """Loss, accuracy, perplexity per token and word, and bits per byte; every token predicted exactly once."""
    if split not in (None, "train", "validation", "test", "all"):
        raise InputError(f"--split is {split!r}; choose train, validation, test or all")
    from tqdm import tqdm

    from mu_sota.common.environment import default_device
    from mu_sota.common.files import as_json
    from mu_sota.data.corpus import load_corpus, load_file
    from mu_sota.evaluation.metrics import FIGURES, evaluate, readable
    from mu_sota.saved.load_save import load_trained
    from mu_sota.saved.run_record import record_of

    _quiet()
    model, tokenizer = load_trained(folder, default_device())
    positions = model.config.max_position_embeddings
    record = record_of(folder)
    trained = record.get("settings", {})
    if window is None:  # positions beyond the run's window have never been trained
        window = int(trained.get("window", positions))
        stride = stride or trained.get("eval_stride")
    stride = window if stride is None else stride
    if not 1 <= stride <= window <= positions:
        raise InputError(
            f"--window is {window} and --stride {stride}, but 1 <= stride <= window <= {positions} must hold"
        )
    own = record.get("data")
    data = data or own
    if data is None:
        raise InputError(f"{folder} has no run.json that says what it was trained on; name a text with --data")
    file = Path(data).expanduser()
    split = split or ("all" if data != own and file.is_file() else "test")
    if split != "all":
        text = getattr(load_corpus(data, tokenizer=tokenizer), split)
    elif file.is_file():
        text = load_file(file, tokenizer)
    else:
        raise InputError(
            f"--split is 'all', which is of one file, but {data!r} is none; choose train, validation or test"
        )
    score = evaluate(
        model,
        text,
        window=window,
        stride=stride,
        batch_size=batch_size,
        progress=lambda batches: tqdm(batches, desc="Evaluating", disable=None),
    )
    if json_:
        how = {"model": str(folder), "data": data, "split": split, "window": window, "stride": stride}
        print(as_json(how | score.as_dict()))
        return
    print(
        f"{data}, {split}: {score.num_tokens:,} tokens, {score.num_words:,} words, {score.num_bytes:,} bytes; "
        f"windows of {window}, stride {stride}"
    )
    for name in FIGURES:
        print(f"  {name:16} {readable(getattr(score, name), 4)}")
    for remark in score.remarks:
        print(f"  ({remark})")


@app.command("generate", short_help="Continue a text, or texts in a session")
def _generate(
    folder: Folder,
    prompt: Annotated[str | None, typer.Option(help="text to continue")] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="ask for prompts, and stream what the model makes of them")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to add")] = 30,
    temperature: Annotated[float, typer.Option(help="below 1 plainer, above 1 wilder, 0 the likeliest token")] = 0.8,
    top_k: Annotated[int, typer.Option(help="sample among so many tokens; 0 for all")] = 50,
    top_p: Annotated[float, typer.Option(help="sample among this share of probability")] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(help="above 1, repeats become less likely")] = 1.2,
    seed: Annotated[int, typer.Option(help="same seed, same text")] = 0,
) -> None:
    """Continue a prompt with a trained model, or several in a terminal session."""
    if (prompt is None) != interactive:
        raise InputError("give either --prompt with the text to continue, or --interactive")
    from mu_sota.settings.sampling import Generation

    settings = Generation()
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    for key, value in {**given, "max_new_tokens": max_new_tokens, "seed": seed}.items():
        settings = settings.changed(key, value)
    from mu_sota.common.environment import default_device
    from mu_sota.generation.continuation import continued, prompt_ids, text_of
    from mu_sota.saved.load_save import load_trained

    _quiet()
    model, tokenizer = load_trained(folder, default_device())
    if prompt is None:
        from mu_sota.generation.terminal import converse

        converse(model, tokenizer, settings)
    else:
        positions = model.config.max_position_embeddings
        ids = prompt_ids(tokenizer, prompt, 1, positions)
        new = min(settings.max_new_tokens, positions - len(ids))
        print(text_of(tokenizer, continued(model, tokenizer, ids, settings, new, settings.seed)))
        if new < settings.max_new_tokens:
            print(f"mu-sota: {new} new tokens are all that fit into the model's {positions} positions", file=sys.stderr)


@app.command("export", short_help="Write a folder for transformers alone")
def _export(folder: Folder, out: Annotated[Path, typer.Option(help="new folder, also the name of the model")]) -> None:
    """Write a folder that transformers loads without mu-sota, with a model card: ready for the Hugging Face hub."""
    _quiet()
    from mu_sota.saved.export import export_model

    written = export_model(folder, out)
    name, path = shlex.quote(f"USER/{written.name}"), shlex.quote(str(written))
    print(
        f"{written} is ready. With transformers alone:\n"
        f"  AutoModelForCausalLM.from_pretrained({str(written)!r}, trust_remote_code=True)\n"
        f"Read its README.md before you publish it: hf upload {name} {path}"
    )


@app.command("playground", short_help="Look inside a model, in the browser")
def _playground(
    folder: Folder,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="if it is taken, the next free one; 0 for any that is free")
    ] = 7860,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open the page in a browser")] = True,
) -> None:
    """Look at a trained model on a local page: its tokens, blocks and attentions, and what it is without some blocks.

    The page is at 127.0.0.1 alone, loads nothing from elsewhere, and ends with Ctrl-C.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise InputError("the playground needs gradio, which is not installed: pip install 'gradio>=6.28'")
    _quiet()
    from mu_sota.playground.page import serve

    serve(folder, port, browser)


@app.command("leakcheck", short_help="Does a model see what it is to predict?")
def _leakcheck(
    target: Annotated[
        str,
        typer.Argument(
            help="a preset; a folder of a run or in Hugging Face layout; a config.json; package.module:callable; "
            "a model type of transformers, such as gpt2; a model on the Hugging Face hub"
        ),
    ],
    train: Annotated[bool, typer.Option("--train", help="also train it on independent uniform tokens")] = False,
    seconds: Annotated[float, typer.Option(min=1.0, help="time for --train")] = 60.0,
    length: Annotated[int | None, typer.Option(min=2, help="tokens of a row. Default: 61, or what it takes")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=2, help="ids are drawn below it. Default: from the model")
    ] = None,
    assignments: Assignments = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="let a model's own Python files run")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu is the most exact")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, float64, bfloat16 or float16; a callable's model keeps its own")
    ] = "float32",
    output: Annotated[
        str | None, typer.Option(metavar="NAME|INDEX", help="the logits in what the model returns. Default: logits")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="seconds after which no further pass begins")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the report to this file")] = None,
) -> None:
    """Does a causal language model see the token it is asked to predict?

    TARGET is any causal model: it is run in ways that must not change its predictions, and where they change, the
    module that is the first to differ is named. Exit status: 0 nothing found, 1 a leak, or a cache, padding or length
    that changes predictions, 2 the model could not be checked, 130 interrupted.
    """
    from mu_sota.settings.load import parse_assignments

    overrides = parse_assignments(assignments or [])
    if dtype not in ("float32", "float64", "bfloat16", "float16"):
        raise InputError(f"--dtype is {dtype!r}; choose float32, float64, bfloat16 or float16")
    if json_file is not None and json_file.is_dir():
        raise InputError(f"--json is the folder {json_file}; give the name of a file")
    _quiet()
    import torch

    from mu_sota.common import environment
    from mu_sota.common.files import write_json
    from mu_sota.leakcheck.checks import TABLE_HEAD, Result, check
    from mu_sota.leakcheck.progress import beside_bar, passes_bar
    from mu_sota.leakcheck.resolve_model import resolve

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"--device {device!r} cannot be used here; cpu always can") from None

    def show(result: Result) -> None:
        with beside_bar():
            if result.check == "future":  # the first: the model can be checked
                with_settings = "".join(f", {key}={value}" for key, value in overrides.items())
                print(f"{found.description}{with_settings}\n\n{TABLE_HEAD}")
            print(result.line(), flush=True)

    with _no_breakdown_is_a_leak(target):
        found = resolve(target, overrides, trust_remote_code, getattr(torch, dtype))
        if isinstance(found.model, torch.nn.Module):
            found.model.to(device)
        with passes_bar() as progress:
            report = check(
                found.model,
                vocab_size,
                length=length,
                device=device,
                output=output,
                time_limit=time_limit,
                seen=show,
                progress=progress,
            )
        if train:
            report.results.append(_trained_on_uniform_tokens(found.rebuild, device, seconds))
            show(report.results[-1])
    print(f"\n{report.summary()}")
    if json_file is not None:
        write_json(
            json_file, {"target": target, "set": overrides, **report.as_dict(), "machine": environment.describe()}
        )
    if not report.clean:
        raise typer.Exit(1)


@contextmanager
def _no_breakdown_is_a_leak(target: str) -> Iterator[None]:
    """Status 1, Python's own for an uncaught error, says here that the model leaks; so whatever breaks down is 2."""
    try:
        yield
    except KeyboardInterrupt:
        _leave(130, "interrupted; what is printed above stands, but no report was written")
    except SystemExit as end:  # of the model's own code
        _leave(2, f"{target} could not be checked: it ended the program with status {end.code}")
    except Exception as error:
        if isinstance(error, InputError) or _expected(error) is not None:
            raise
        traceback.print_exc()
        _leave(2, f"{target} could not be checked")


def _trained_on_uniform_tokens(rebuild: "Callable[[], Any] | None", device: str, seconds: float) -> "Result":
    from mu_sota.leakcheck.checks import Result
    from mu_sota.leakcheck.noise_training import CHECK, train_on_uniform_tokens
    from mu_sota.leakcheck.progress import seconds_bar

    if rebuild is None:
        return Result(CHECK, "skipped", meaning="a function has no weights to train; give a module")
    with seconds_bar(seconds) as progress:
        return train_on_uniform_tokens(lambda: rebuild().to(device), seconds, progress)


@app.command("compare", short_help="MU beside standard Transformers")
def _compare(
    out: Annotated[
        Path | None, typer.Option(help="folder for trainings, record and report; not needed with --plan")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"{_PRESET}. Default: mu-sota")] = None,
    data: Annotated[str | None, typer.Option(help=f"{_DATA}. Default: pydocs")] = None,
    match: Annotated[
        str | None, typer.Option(help="what is made equal, a question each. Default: params,flops,time")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="trainings of every model that count. Default: 3")] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="time for all trainings, as 2h or 45min; or steps of each, as 500steps. Default: 2h"),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="settings tried for every model. Default: 12")] = None,
    controls: Annotated[
        bool | None,
        typer.Option(
            "--controls/--no-controls",
            help="also a GPT-2 against itself, which must tie, and a crippled one, which must lose",
        ),
    ] = None,
    assignments: Assignments = None,
    config: SettingsFile = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="say what would be done, and how long it takes; train nothing")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the comparison in --out, if there is one")
    ] = False,
) -> None:
    """Train MU beside GPT-2 and Llama style models of matching size, all tuned alike, and write a report.

    With --resume, all that is not given is as the comparison was started.
    """
    if out is None and not plan:
        raise InputError("give --out, a folder for the comparison, or --plan to see what it would do")
    from mu_sota.settings.load import load_settings, parse_assignments, read_yaml

    _quiet()
    from mu_sota.comparison.conclusions import as_text
    from mu_sota.comparison.plan import Request
    from mu_sota.comparison.runner import Comparison, recorded_request

    before = recorded_request(out) if resume and out is not None else {}
    given = {
        "preset": preset,
        "data": data,
        "questions": None if match is None else tuple(part.strip() for part in match.split(",")),
        "seeds": seeds,
        "budget": budget,
        "trials": trials,
        "controls": controls,
    }
    changed = {**(read_yaml(config) if config else {}), **parse_assignments(assignments or [])}
    overrides = {**before.get("overrides", {}), **changed}
    if resume and out is not None and not before and preset is None and data is None:
        raise InputError(
            f"there is no comparison in {out} to go on with; correct --out, or say what to compare, with --preset or "
            f"--data"
        )
    kept = {key: value for key, value in before.items() if key in given}
    request = Request(**kept | {key: value for key, value in given.items() if value is not None}, overrides=overrides)
    comparison = Comparison(request, load_settings(request.preset, overrides=request.overrides))
    if plan:
        print(comparison.describe(comparison.plan_in(out) if resume and out is not None else comparison.make_plan()))
        return
    assert out is not None
    record = comparison.run(out, resume)
    print("\n" + as_text(record) + "\n" + "\n".join(record["verdict"]))
    print(f"\n{out}: report.html (opens in any browser, prints to PDF), report.md, comparison.json")


@app.command("info", short_help="Parameters, FLOPs, memory, settings")
def _info(preset: Preset = "mu-sota", assignments: Assignments = None, config: SettingsFile = None) -> None:
    """Parameters part by part, FLOPs per token, memory of a training step, and all settings."""
    from mu_sota.settings.load import load_settings, parse_assignments

    settings = load_settings(preset, config, parse_assignments(assignments or []))
    from mu_sota.evaluation.cost import describe

    print(describe(settings))


def _part_from_other_processes() -> None:
    """Under torchrun, end the group of processes in order; PyTorch complains otherwise."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _quiet() -> None:
    """What the library would print of its own beside our lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 a leak found, 2 something the user can fix, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Generated text can hold characters that the terminal's encoding lacks; that must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
    except InputError as error:
        _leave(2, str(error))
    except Exception as error:
        sentence = _expected(error)
        if sentence is None:
            raise
        _leave(*sentence)


def _expected(error: BaseException) -> tuple[int, str] | None:
    """Exit status and sentence of an error that is nobody's bug."""
    if type(error).__name__ == "Interrupted":
        return 130, f"interrupted: {error}; the same command with --resume goes on from there"
    causes: list[Any] = [error, error.__cause__, error.__context__]
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            place = cause.filename or "the output folder"
            return 2, f"the disk is full, writing {place}; free some space, then go on with --resume"
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            return 2, f"{str(cause.filename)[:40]}... is too long for the name of a file; give a shorter one"
        if isinstance(cause, PermissionError | NotADirectoryError | FileExistsError | IsADirectoryError):
            return 2, f"{cause.filename} cannot be used ({cause.strerror}); choose another folder, or change its rights"
    if "No space left on device" in str(error) or "os error 28" in str(error):
        return 2, "the disk is full; free some space, then go on with --resume"
    if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # all that torch.save says of it
        return 2, "a model file could not be written whole, most likely to a full disk; free space, then use --resume"
    if isinstance(error, ImportError):
        return 2, f"a library is missing or of the wrong version ({error}); `pip install .` brings what is needed"
    return None


def _leave(status: int, sentence: str) -> None:
    print(f"mu-sota: {sentence}", file=sys.stderr)
    sys.exit(status)
