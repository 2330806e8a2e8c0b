"""`mu-sota compare`."""

from pathlib import Path
from typing import Annotated

import typer

from mu_sota.comparison.earlier_tuning import read_earlier_tuning
from mu_sota.comparison.folder import recorded_request, refuse_existing_comparison
from mu_sota.comparison.request import Request
from mu_sota.data.sources import require_source
from mu_sota.model.errors import InputError
from mu_sota.settings.load import configure, merge_settings, parse_assignments, read_yaml
from mu_sota.settings.presets import DEFAULT_PRESET

from .app import DATA, PRESETS, Assignments, SettingsFile, load_libraries, path_of, say


def compare(
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="PATH", help="folder for trainings, record and report; not needed with --plan"
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"{PRESETS}. Default: {DEFAULT_PRESET}")] = None,
    data: Annotated[str | None, typer.Option(help=f"{DATA}. Default: pydocs")] = None,
    match: Annotated[
        str | None, typer.Option(help="what is made equal, a question each. Default: params,flops,time")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="final runs of every model. Default: 3")] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="time for all trainings, as 2h or 45min; or steps of each, as 500steps. Default: 2h"),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="hyperparameters tried for every model. Default: 12")] = None,
    tuned_in: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="PATH",
            help="a finished comparison whose choices are taken instead of trying any: for trainings too long to tune",
        ),
    ] = None,
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

    With --resume, an option that is left out is as the comparison was started.
    """
    if out is None and not plan:
        raise InputError("give --out, a folder for the comparison, or --plan to see what it would do")
    if out is not None and not resume and not plan:
        refuse_existing_comparison(out)
    if trials is not None and tuned_in is not None:
        raise InputError(
            "--trials tries settings and --tuned-in takes those of a finished comparison; give one of them"
        )
    changed = {**(read_yaml(config) if config else {}), **parse_assignments(assignments or [])}
    begun = recorded_request(out) if resume and out is not None else {}
    if resume and out is not None and not begun and preset is None and data is None:
        raise InputError(
            f"there is no comparison in {out} to go on with; correct --out, or say what to compare, with --preset or "
            f"--data"
        )
    if resume and out is not None and not begun and plan:
        raise InputError(f"there is no comparison in {out}; leave out --resume to plan one")
    options = {
        "preset": preset,
        "data": data,
        "questions": None if match is None else tuple(part.strip() for part in match.split(",")),
        "seeds": seeds,
        "budget": budget,
        "trials": trials,
        "tuned_in": None if tuned_in is None else str(tuned_in),
        "controls": controls,
    }
    kept = {key: value for key, value in begun.items() if key in options}
    changed_options = {key: value for key, value in options.items() if value is not None}
    request = Request(**kept | changed_options, overrides={**begun.get("overrides", {}), **changed})
    merged = merge_settings(request.preset, overrides=request.overrides)
    require_source(request.data)
    if request.tuned_in and not begun:
        # A wrong one is refused at once; a comparison that began has the settings in its plan.
        read_earlier_tuning(Path(request.tuned_in))
    load_libraries()
    from mu_sota.comparison.conclusions import as_text
    from mu_sota.comparison.runner import describe_comparison, run_comparison

    settings = configure(merged)
    if plan:
        say(describe_comparison(request, settings, out if resume else None))
        return
    assert out is not None
    record = run_comparison(request, settings, out, resume)
    say("\n" + as_text(record) + "\n" + "\n".join(record["verdict"]))
    say(f"\n{out}: report.html (opens in any browser, prints to PDF), report.md, comparison.json")
