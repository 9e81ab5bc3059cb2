"""What is recorded in MLflow."""

from typing import Annotated

from pydantic import Field, field_validator

from halfstep.settings.base import Settings


class TrackingSettings(Settings):
    """What MLflow gets. The server is `MLFLOW_TRACKING_URI`, or SQLite in the project."""

    # MLflow takes 500 characters, and a number is added to the name of an experiment that was deleted.
    experiment: Annotated[str, Field(min_length=1, max_length=490)]
    log_models: bool

    @field_validator("experiment")
    @classmethod
    def _experiment_is_ours(cls, value: str) -> str:
        if value.strip() != value:
            raise ValueError("has spaces around it")
        # MLflow made it, to keep files in whatever folder it was started in: under DVC's queue, a temporary one.
        if value == "Default":
            raise ValueError("is MLflow's own experiment; choose another name")
        return value
