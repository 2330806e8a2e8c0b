"""What the record of a run says of its text and windows. It may be of another version, or changed by somebody."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mu_sota.common.outside import in_one_sentence
from mu_sota.settings.run import Text

from .run_record import RUN_FILE, record_of


class TrainedSettings(Text):
    """Of the settings of a run, those by which its text is read and cut."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    window: int | None = Field(None, ge=1)
    eval_stride: int | None = Field(None, ge=1)
    grounding: float = 0.0


class TrainedOn(BaseModel):
    """What a model was trained on.

    Attributes:
        data: name or path of the text; None where there is no record.
        settings: of the run; as usual where there is no record.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    data: str | None = None
    settings: TrainedSettings = TrainedSettings()


def trained_on(folder: Path) -> TrainedOn:
    """What the record says of the run that a folder is, or whose best model it holds.

    Raises:
        InputError: the record cannot be read, or holds what no run records.
    """
    with in_one_sentence(f"{RUN_FILE} of {folder} is no record of a run", "put back a copy of it"):
        record = dict(record_of(folder))
        known = TrainedSettings.model_fields
        settings = {key: value for key, value in dict(record.get("settings", {})).items() if key in known}
        return TrainedOn.model_validate(record | {"settings": settings})
