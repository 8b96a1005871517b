"""What is wrong with a configuration, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError


@dataclass(frozen=True)
class Problem:
    """One bad value: ``key`` as it stands in the stack file, ``what`` is wrong, how to ``mend`` it."""

    key: str
    what: str
    mend: str


class SettingsError(ValueError):
    """A configuration with one or more bad values.

    ``where`` is the stack file and ``problems`` has every bad value in it; the
    message names them all, a line each.
    """

    def __init__(self, where: str, problems: Iterable[Problem]) -> None:
        """Make the message out of ``problems``."""
        self.where = where
        self.problems = tuple(problems)
        count = "1 bad value" if len(self.problems) == 1 else f"{len(self.problems)} bad values"
        lines = [f"  {p.key}: {p.what}. {p.mend}" for p in self.problems]
        super().__init__("\n".join([f"{where}: {count}; nothing was changed.", *lines]))


def reject(what: str, mend: str) -> NoReturn:
    """Raise, inside a validator, the error that says ``what`` is wrong and how to ``mend`` it."""
    raise PydanticCustomError("bad_value", "{what}", {"what": what, "mend": mend})


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str) -> list[Problem]:
    """Turn pydantic's account of what is wrong with a ``model`` into problems, one a value.

    ``prefix`` stands before every key, such as ``derp-relays:``.
    """
    return [_problem(details, model, prefix) for details in error.errors(include_url=False)]


# pydantic's own types of error, told in our words; what stands in braces is filled in.
_WHAT = {
    "missing": "is missing",
    "model_type": "{value} is not a group of settings",
    "dict_type": "{value} is not a group of settings",
    "list_type": "{value} is not a list",
    "int_type": "{value} is not a whole number",
    "int_parsing": "{value} is not a whole number",
    "int_from_float": "{value} is not a whole number",
    "float_type": "{value} is not a number",
    "float_parsing": "{value} is not a number",
    "finite_number": "{value} is not a number",
    "bool_type": "{value} is neither true nor false",
    "bool_parsing": "{value} is neither true nor false",
    "string_type": "{value} is not text",
    "literal_error": "{value} is not one of {expected}",
    "greater_than_equal": "{value} is less than {ge:g}",
    "less_than_equal": "{value} is more than {le:g}",
    "too_short": "{value} is empty",
}


def _problem(details: ErrorDetails, model: type[BaseModel], prefix: str) -> Problem:
    context: Mapping[str, Any] = details.get("ctx", {})
    loc, fields, mend = _field(model, details["loc"])
    key = prefix + _dotted(loc)
    if details["type"] == "bad_value":
        return Problem(key, context["what"], context["mend"])
    if details["type"] == "union_tag_invalid":
        return Problem(
            f"{key}.kind", f"{context['tag']!r} is none", f"Use one of {context['expected_tags']}."
        )
    if details["type"] == "extra_forbidden":
        names = [str(info.alias or name) for name, info in fields.items()]
        near = difflib.get_close_matches(str(details["loc"][-1]), names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(names))}."
        return Problem(key, "is no setting", hint)
    what = _WHAT.get(details["type"], "{value}: {message}")
    filled = what.format_map({**context, "value": _shown(details["input"]), "message": details["msg"]})
    return Problem(key, filled, mend)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - one line on a terminal


def _dotted(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _field(
    model: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[tuple[int | str, ...], Mapping[str, Any], str]:
    """Find what ``loc`` leads to: as it stands in the file, the fields beside it, and how to mend it.

    pydantic puts the kind of a group that has several into its path; the file
    has it not. How to mend a value is its own description.
    """
    shown: list[int | str] = []
    fields: Mapping[str, Any] = model.model_fields
    description = model.__doc__ or ""
    inner: list[type[BaseModel]] = []
    for part in loc:
        if isinstance(part, int):
            shown.append(part)
            continue
        of_kind = [each for each in inner if len(inner) > 1 and _kind(each) == part]
        if of_kind:
            inner = of_kind
            fields, description = of_kind[0].model_fields, of_kind[0].__doc__ or ""
            continue
        shown.append(part)
        if len(inner) == 1:
            fields = inner[0].model_fields
        info = next((i for name, i in fields.items() if part in (name, i.alias)), None)
        if info is None:
            break
        description = info.description or description
        inner = list(models_in(info.annotation))
    return tuple(shown), fields, description


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return next(iter(getattr(field.annotation, "__args__", ())), None) if field else None


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the groups of settings that a field of the type ``annotation`` may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)
