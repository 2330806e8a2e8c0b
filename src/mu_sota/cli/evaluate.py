"""`mu-sota evaluate`."""

from typing import Annotated

import typer

from mu_sota.data.sources import require_source
from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import model_folder
from mu_sota.saved.trained_on import trained_on

from .app import DATA, Folder, load_libraries, say


def evaluate(
    folder: Folder,
    data: Annotated[str | None, typer.Option(help=f"{DATA}. Default: what the run was trained on")] = None,
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

    model_folder(folder)
    trained = trained_on(folder)
    own = trained.data
    data = own if data is None else data
    if data is None:
        raise InputError(f"{folder} has no run.json that says what it was trained on; name a text with --data")
    require_source(data)
    load_libraries()
    from tqdm import tqdm

    from mu_sota.common.environment import default_device
    from mu_sota.common.files import as_json
    from mu_sota.common.outside import user_path
    from mu_sota.common.text import readable
    from mu_sota.data.corpus import load_corpus, load_file
    from mu_sota.data.options import TextOptions
    from mu_sota.evaluation.metrics import FIGURES, evaluate
    from mu_sota.saved.load_save import load_trained

    model, tokenizer = load_trained(folder, default_device())
    positions = model.config.max_position_embeddings
    if window is None:  # positions beyond the run's window have never been trained
        window = trained.settings.window or positions
        stride = stride or trained.settings.eval_stride
    stride = window if stride is None else stride
    if not 1 <= stride <= window <= positions:
        raise InputError(
            f"--window is {window} and --stride {stride}, but 1 <= stride <= window <= {positions} must hold"
        )
    file = user_path(data)
    options = TextOptions.of(trained.settings.model_dump())
    split = split or ("all" if data != own and file.is_file() else "test")
    if split != "all":
        text = getattr(load_corpus(data, tokenizer=tokenizer, options=options), split)
    elif file.is_file():
        text = load_file(file, tokenizer, options)
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
    say(
        f"{data}, {split}: {score.num_tokens:,} tokens, {score.num_words:,} words, {score.num_bytes:,} bytes; "
        f"windows of {window}, stride {stride}"
    )
    for name in FIGURES:
        say(f"  {name:16} {readable(getattr(score, name), 4)}")
    for remark in score.remarks:
        say(f"  ({remark})")
