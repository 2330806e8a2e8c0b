"""The trainings of `gpu_research.yaml`, one after the other; one that was cut off goes on from its checkpoint."""

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mu_sota.saved.run_record import recorded
from mu_sota.settings.load import load_settings
from mu_sota.training import train

from .context import Context
from .recipe import tiny_settings

LIST = Path(__file__).parents[1] / "gpu_research.yaml"


def run(context: Context) -> None:
    """In the order of the list; at tiny sizes the first alone, and the settings of all are read."""
    wanted = yaml.safe_load(LIST.read_text("utf-8"))
    for entry in wanted:
        load_settings(entry["preset"], None, entry["settings"])
    for number, entry in enumerate(wanted[:1] if context.tiny else wanted):
        data = f"{context.data}-{entry['data']}" if "data" in entry else context.data
        preset, settings = entry["preset"], entry["settings"]
        name = " ".join([preset, *(f"{key}={value}" for key, value in settings.items())])
        context.part(name, partial(one, context, preset, settings, data, number), least=30)


def one(context: Context, preset: str, settings: dict[str, Any], data: str, number: int) -> dict[str, Any]:
    """The scores of a training after each epoch."""
    overrides = {"trackers": [], "checkpoint_minutes": 1.0} | settings | tiny_settings(context)
    # Beside the records, it would be carried home with them.
    folder = Path(tempfile.gettempdir()) / f"mu-sota-research-{context.record['code']}-{number}"
    train(preset, data, folder, load_settings(preset, None, overrides), resume=True)
    result = recorded(folder)["result"]
    shutil.rmtree(folder)
    best = result["best"]["validation"]
    return {
        "loss": best["loss"],
        "perplexity": best["perplexity"],
        "bits_per_byte": best["bits_per_byte"],
        "epoch": result["best"]["epoch"],
        "seconds": result["seconds_of_last_start"],
    }
