"""Lists of resources: filters, label selectors, order and pages, as every list of the API has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask import request

from .errors import invalid_input

DEFAULT_PER_PAGE = 25
LARGEST_PER_PAGE = 50
"""Both from https://docs.hetzner.cloud/reference/cloud#description/pagination."""

_SET_TERM = re.compile(r"(?P<key>[^\s!=(),]+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUAL_TERM = re.compile(r"(?P<key>[^\s!=(),]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s!=(),]*)")
_PRESENT_TERM = re.compile(r"(?P<op>!?)\s*(?P<key>[^\s!=(),]+)")
_COMMA_OUTSIDE_SET = re.compile(r",(?![^()]*\))")

SORTABLE = ("id", "name", "created", "status", "command", "progress", "started", "finished")

Labels = Mapping[str, str]


def label_test(selector: str) -> Callable[[Labels], bool]:
    """
    Return what tells whether labels are selected.

    Takes the language of https://docs.hetzner.cloud/reference/cloud#description/label-selector. Raises
    ``invalid_input`` for anything else.
    """
    terms = [_term(text.strip()) for text in _COMMA_OUTSIDE_SET.split(selector)]
    return lambda labels: all(holds(labels) for holds in terms)


def _term(text: str) -> Callable[[Labels], bool]:
    if match := _SET_TERM.fullmatch(text):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["op"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL_TERM.fullmatch(text):
        key, value = match["key"], match["value"]
        if match["op"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _PRESENT_TERM.fullmatch(text):
        key, wanted = match["key"], not match["op"]
        return lambda labels: (key in labels) is wanted
    raise invalid_input({"label_selector": [f"label selector '{text}' is not valid"]})


def listed(key: str, entries: Sequence[dict[str, Any]], filters: Sequence[str] = ("name",)) -> dict[str, Any]:
    """
    Return the body of a list, of one page.

    ``entries`` are all resources as the API shows them. ``filters`` names the fields that the query may ask a
    value of (one of several where it is given more than once); ``label_selector``, ``sort``, ``page`` and
    ``per_page`` are always heeded. Raises ``invalid_input`` where one of them cannot be taken.
    """
    chosen = list(entries)
    for field in filters:
        if wanted := request.args.getlist(field):
            chosen = [entry for entry in chosen if str(entry[field]) in wanted]
    if selector := request.args.get("label_selector"):
        is_selected = label_test(selector)
        chosen = [entry for entry in chosen if is_selected(entry["labels"])]
    # the last one named decides least, so it is sorted by first
    for order in reversed(request.args.getlist("sort") or ["id"]):
        chosen = _sorted(chosen, order)
    page, size = _number("page", 1), min(_number("per_page", DEFAULT_PER_PAGE), LARGEST_PER_PAGE)
    pages = max(1, -(-len(chosen) // size))
    return {
        key: chosen[(page - 1) * size : page * size],
        "meta": {
            "pagination": {
                "page": page,
                "per_page": size,
                "previous_page": page - 1 if page > 1 else None,
                "next_page": page + 1 if page < pages else None,
                "last_page": pages,
                "total_entries": len(chosen),
            }
        },
    }


def _sorted(entries: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    field, _, direction = order.partition(":")
    if direction not in ("", "asc", "desc") or field not in SORTABLE or (entries and field not in entries[0]):
        raise invalid_input({"sort": [f"cannot sort by '{order}'"]})
    # what has no value yet comes first
    return sorted(
        entries, key=lambda entry: (entry[field] is not None, entry[field]), reverse=direction == "desc"
    )


def _number(name: str, default: int) -> int:
    text = request.args.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise invalid_input({name: ["must be a positive integer"]})
    return int(text)
