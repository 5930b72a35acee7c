"""What all sections of a recipe have in common."""

import os.path
import re
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler

from coevolve.registry import CUSTOM, HOW_TO_NAME_ONES_OWN, IMPORT_PATH

EXTENDS = "extends"
"""Under this key a recipe's file names the one that it goes over."""
LARGEST = 10**9
"""Where there is no other bound. Beside a larger number, float32 has no digits left for a 1."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
PositiveAmount = Annotated[float, Field(gt=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
"""AdamW moves every weight by about so much in a step."""
Temperature = Annotated[float, Field(ge=0.01, le=100)]
"""Below it, logits that are divided by it leave float16."""


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"found {text!r}; accepted is a path, or a name that stands for one")
    return os.path.expanduser(text)


PathText = Annotated[str, AfterValidator(_path)]
"""A path, or a name that stands for one; a leading `~` is written out on reading, only."""


def one_of(*names: str) -> AfterValidator:
    """Accepts these names, and a user's own as `custom:` and an import path."""

    def check(text: str) -> str:
        own = text.startswith(CUSTOM) and re.fullmatch(IMPORT_PATH, text.removeprefix(CUSTOM))
        if not own and text not in names:
            accepted = ", ".join((*names, HOW_TO_NAME_ONES_OWN))
            raise ValueError(f"found {text!r}; accepted are {accepted}")
        return text

    return AfterValidator(check)


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change, and each is of its own kind
    (`true` is not 1, '3' is not 3, though 3 is a float too) and finite.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """For editors, of a YAML file: it may leave out what the one that it extends says, and a
        field that is a section is described as that one is.
        """
        schema = handler(core)
        properties = cls.of_file(handler.resolve_ref_schema(schema))
        for name, field in cls.model_fields.items():
            properties[name].pop("title", None)
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, Section):
                    about = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
                    properties[name].setdefault("description", about)
                    properties[name].pop("default", None)
        return schema

    @classmethod
    def of_file(cls, schema: dict[str, Any]) -> dict[str, Any]:
        """Make the section's own schema one of files; its properties."""
        schema.pop("required", None)
        properties: dict[str, Any] = schema["properties"]
        return properties
