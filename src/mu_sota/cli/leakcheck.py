"""`mu-sota leakcheck`."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mu_sota.model.errors import InputError
from mu_sota.settings.load import parse_assignments

from .app import Assignments, load_libraries, path_of
from .errors import leave, sentence_of

if TYPE_CHECKING:
    from mu_sota.leakcheck.report import Result


def leakcheck(
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
    json_file: Annotated[
        Path | None, typer.Option("--json", parser=path_of, metavar="PATH", help="write the report to this file")
    ] = None,
) -> None:
    """Does a causal language model see the token it is asked to predict?

    TARGET is any causal model: it is run in ways that must not change its predictions, and where they change, the
    module that is the first to differ is named. Exit status: 0 nothing found, 1 a leak, or a cache, padding or length
    that changes predictions, 2 the model could not be checked, 130 interrupted.
    """

    overrides = parse_assignments(assignments or [])
    if dtype not in ("float32", "float64", "bfloat16", "float16"):
        raise InputError(f"--dtype is {dtype!r}; choose float32, float64, bfloat16 or float16")
    if json_file is not None and json_file.is_dir():
        raise InputError(f"--json is the folder {json_file}; give the name of a file")
    load_libraries()
    import torch

    from mu_sota.common import environment
    from mu_sota.common.files import write_json
    from mu_sota.leakcheck.checks import check
    from mu_sota.leakcheck.progress import beside_bar, passes_bar
    from mu_sota.leakcheck.report import TABLE_HEAD, Result
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
        leave(130, "interrupted; what is printed above stands, but no report was written")
    except SystemExit as end:  # of the model's own code
        leave(2, f"{target} could not be checked: it ended the program with status {end.code}")
    except Exception as error:
        if isinstance(error, InputError) or sentence_of(error) is not None:
            raise
        traceback.print_exc()
        leave(2, f"{target} could not be checked")


def _trained_on_uniform_tokens(rebuild: "Callable[[], Any] | None", device: str, seconds: float) -> "Result":
    from mu_sota.leakcheck.noise_training import CHECK, train_on_uniform_tokens
    from mu_sota.leakcheck.progress import seconds_bar
    from mu_sota.leakcheck.report import Result

    if rebuild is None:
        return Result(CHECK, "skipped", meaning="a function has no weights to train; give a module")
    with seconds_bar(seconds) as progress:
        return train_on_uniform_tokens(lambda: rebuild().to(device), seconds, progress)
