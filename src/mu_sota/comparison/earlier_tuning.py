"""Hyperparameters that an earlier comparison chose, for one whose trainings are too long to tune in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mu_sota.common.outside import in_one_sentence, parse_object, read_text
from mu_sota.model.errors import InputError

from .folder import RECORD_FILE
from .hyperparameter_search import Trial


@dataclass(frozen=True)
class EarlierTuning:
    """What an earlier comparison chose.

    Attributes:
        command: that made it.
        preset: of its MU.
        data_fingerprint: of its text and tokens.
        steps: of its final runs, for which it chose.
        trials: the settings chosen, by the name of the contender.
    """

    command: str
    preset: str
    data_fingerprint: str
    steps: int
    trials: dict[str, Trial]

    def require(self, names: list[str]) -> None:
        """See that it chose for all contenders.

        Raises:
            InputError: one is missing.
        """
        if missing := [name for name in names if name not in self.trials]:
            raise InputError(
                f"the comparison of --tuned-in chose for {', '.join(self.trials)}, not for {', '.join(missing)}; "
                f"give the record of one with the same --match and kind of preset, or --trials to tune"
            )


def read_earlier_tuning(path: Path) -> EarlierTuning:
    """Read it from a comparison's record, or from the folder that holds it.

    Raises:
        InputError: it is not there, or no such record.
    """
    file = path / RECORD_FILE if path.is_dir() else path
    remedy = f"give --tuned-in a folder of a finished comparison, or its {RECORD_FILE}"
    with in_one_sentence(f"{file} cannot be read as the record of a comparison", remedy):
        content = parse_object(read_text(file))
        kept: dict[str, Any] = {key: content[key] for key in ("command", "preset", "data_fingerprint", "steps")}
        trials = {one["name"]: one["chosen"] for one in content["arms"] if one["control_of"] is None}
        return TypeAdapter(EarlierTuning).validate_python(kept | {"trials": trials})
