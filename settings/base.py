"""What all groups of settings share: how they are read, and where relative folders start from."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

# Where relative folders in a stack file start from, as Pulumi.yaml's own paths do.
PROJECT_FOLDER = Path(__file__).resolve().parent.parent


class Group(BaseModel):
    """A group of settings. Names in stack files are in camelCase; unknown ones are refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=False,
    )
