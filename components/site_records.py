"""The DNS records of all sites' names, as one resource, however many there are."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import hcloud
import pulumi
from hcloud.actions import ActionFailedException, BoundAction
from hcloud.zones import BoundZoneRRSet, Zone, ZoneRecord, ZoneRRSet
from pulumi import dynamic

from components.hetzner_api import API_ERRORS, STACK_LABEL, UNAUTHORIZED_MEND, api_client, meaning

# Beside the stack's: the relay's own records have that as well.
SITES_LABEL = {"derp-relays.records": "sites"}
# What a name's address can be in, or what no address can be beside.
ADDRESSES_OR_ALIAS: list[Any] = ["A", "AAAA", "CNAME"]

# A change of these is an update; of the last two, so that a later refresh uses what is good by now.
_COMPARED = ("zone", "names", "ipv4", "ipv6", "ttl", "labels", "token", "endpoint")
# Changes that may be under way at once: as many as one page of a list tells of.
_AT_ONCE = 50
# Seconds between questions, and how many, as the API's client waits for one change.
_POLL = 1.0
_POLLS = 120
# How many of many an error names.
_NAMED = 5


class SiteRecordsError(Exception):
    """Records are not as they should be; the message says which, why, and what was done."""


class SiteRecords(dynamic.Resource, module="hetzner", name="SiteRecords"):
    """A and AAAA records of names in a zone at Hetzner DNS, which are known again by their labels."""

    def __init__(  # noqa: PLR0913 - what the records say, and how the API is reached
        self,
        name: str,
        *,
        zone: str,
        names: Collection[str],
        ipv4: pulumi.Input[str],
        ipv6: pulumi.Input[str] | None,
        ttl: int,
        labels: Mapping[str, str],
        token: pulumi.Input[str | None],
        endpoint: str | None,
        opts: pulumi.ResourceOptions,
    ) -> None:
        """Declare that ``names``, as ``zone`` has them, such as ``blog`` or ``@``, lead to the addresses.

        ``ttl`` is in seconds. ``labels`` has `STACK_LABEL`. Without a ``token`` it is
        ``HCLOUD_TOKEN``, without an ``endpoint`` ``HCLOUD_ENDPOINT``, as for Hetzner's provider.
        """
        super().__init__(
            _Provider(),
            name,
            {
                "zone": zone,
                "names": sorted(names),
                "ipv4": ipv4,
                "ipv6": ipv6,
                "ttl": ttl,
                "labels": {**labels, **SITES_LABEL},
                "token": token,
                "endpoint": endpoint,
            },
            opts,
        )


class _Provider(dynamic.ResourceProvider):
    """Keeps the records. Pulumi runs it in a process of its own, in the project's folder.

    ``names`` of the state are those that are whole, and what is left of others:
    where that is not what is asked for, the next update mends it.
    """

    # It is this class by its name: nothing in it is secret.
    serialize_as_secret_always = False

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        return dynamic.DiffResult(changes=any(_olds.get(key) != _news.get(key) for key in _COMPARED))

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        with _errors_alone():
            _Records(props).put(_wanted(props))
        return dynamic.CreateResult(props["labels"][STACK_LABEL], props)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        with _errors_alone():
            _Records(_news).put(_wanted(_news))
            if _olds["zone"] != _news["zone"]:
                # With today's token: the one of before may be no good any more.
                _Records({**_news, "zone": _olds["zone"]}).remove()
        return dynamic.UpdateResult(_news)

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        with _errors_alone():
            found = _Records(props).own()
        if found is None:
            return dynamic.ReadResult("", {})
        return dynamic.ReadResult(id_, {**props, "names": _true_names(props, found)})

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        with _errors_alone():
            _Records(_props).remove()


def full_name(record: str, zone: str) -> str:
    """Return the whole name of what ``zone`` has as ``record``: the zone's own for ``@``."""
    return zone if record == "@" else f"{record}.{zone}"


def in_the_way(found: Iterable[ZoneRRSet], wanted: Collection[str], owner: str) -> list[ZoneRRSet]:
    """Return those of ``found`` that keep record sets with the ids ``wanted``, such as ``blog/A``, out.

    They are of the same name and do not have ``owner`` as their `STACK_LABEL`: somebody
    else's. An alias is always in the way.
    """
    names = {id_.rpartition("/")[0] for id_ in wanted}
    return [
        each
        for each in found
        if (each.id in wanted and _owner(each) != owner) or (each.type == "CNAME" and each.name in names)
    ]


def described(others: Sequence[ZoneRRSet], zone: str) -> str:
    """Return what ``others`` are, the first few of them by name."""
    told = []
    for each in others[:_NAMED]:
        owner = _owner(each)
        told.append(_title(each, zone) + (f" (of {owner})" if owner else ""))
    rest = len(others) - _NAMED
    return ", ".join([*told, f"{rest} more"] if rest > 0 else told)


class _Records:
    """The record sets of a zone that are a stack's sites', at the API."""

    def __init__(self, props: Mapping[str, Any]) -> None:
        token = props.get("token") or os.environ.get("HCLOUD_TOKEN")
        if not token:
            raise SiteRecordsError(
                "there is no API token for Hetzner Cloud, for the records of sites: export HCLOUD_TOKEN, or"
                " pulumi config set --secret hcloud:token"
            )
        self._zones = api_client(token, props.get("endpoint")).zones
        self._zone = Zone(name=props["zone"])
        self._name: str = props["zone"]
        self._owner: str = props["labels"][STACK_LABEL]
        self._under_way: dict[int, str] = {}

    def put(self, wanted: Mapping[str, ZoneRRSet]) -> None:
        """Have what is ``wanted``, by id, and nothing else; ask for what differs alone.

        Raises ``SiteRecordsError`` before anything is changed, if something else is in the way.
        """
        found = self._listed(type=ADDRESSES_OR_ALIAS)
        if found is None:
            raise SiteRecordsError(
                f"this project at Hetzner has no zone {self._name}. Make it in the Hetzner Console, or leave"
                " host.dnsZone out of the stack's file."
            )
        self._refuse(in_the_way(found, wanted, self._owner))
        there = {str(each.id): each for each in found}
        for id_, each in wanted.items():
            with _told(f"{_title(each, self._name)} could not be put"):
                if id_ in there:
                    self._change(there[id_], each)
                else:
                    self._make(each)
        self._delete(each for each in found if self._is_own(each) and each.id not in wanted)
        self._settle()

    def remove(self) -> None:
        """Remove what is the sites' of the stack, and nothing else."""
        self._delete(self.own() or ())
        self._settle()

    def own(self) -> list[BoundZoneRRSet] | None:
        """Return what is the sites' of the stack; ``None`` without the zone."""
        labels = ",".join(f"{key}={value}" for key, value in self._labels().items())
        return self._listed(label_selector=labels)

    def _listed(self, **which: Any) -> list[BoundZoneRRSet] | None:
        try:
            with _told(f"the records of the zone {self._name} cannot be listed"):
                return self._zones.get_rrset_all(self._zone, **which)
        except _NotThereError:
            return None

    def _labels(self) -> dict[str, str]:
        return {STACK_LABEL: self._owner, **SITES_LABEL}

    def _is_own(self, found: ZoneRRSet) -> bool:
        return self._labels().items() <= (found.labels or {}).items()

    def _refuse(self, others: Sequence[ZoneRRSet]) -> None:
        if others:
            raise SiteRecordsError(
                f"the zone {self._name} has records of sites' names that are not this stack's:"
                f" {described(others, self._name)}. No record of theirs was changed. Delete them in the"
                " Hetzner Console, or take the names out of sites in the stack's file."
            )

    def _make(self, wanted: ZoneRRSet) -> None:
        assert wanted.name is not None and wanted.type is not None  # noqa: S101, PT018 - `_wanted` gives both
        try:
            made = self._zones.create_rrset(
                self._zone,
                name=wanted.name,
                type=wanted.type,
                ttl=wanted.ttl,
                labels=wanted.labels,
                records=wanted.records,
            )
        except hcloud.APIException as error:
            if error.code != "uniqueness_error":
                raise
        else:
            self._follow(made.action, wanted)
            return
        # The answer was lost, and the client asked again; or somebody made it just now.
        there = self._zones.get_rrset(self._zone, wanted.name, wanted.type)
        self._refuse(in_the_way([there], [str(wanted.id)], self._owner))
        self._change(there, wanted)

    def _change(self, there: BoundZoneRRSet, wanted: ZoneRRSet) -> None:
        if there.labels != wanted.labels:
            self._zones.update_rrset(there, labels=wanted.labels)
        if there.ttl != wanted.ttl:
            self._follow(self._zones.change_rrset_ttl(there, wanted.ttl), wanted)
        if _values(there) != _values(wanted):
            self._follow(self._zones.set_rrset_records(there, wanted.records or []), wanted)

    def _delete(self, found: Iterable[BoundZoneRRSet]) -> None:
        for each in found:
            with (
                contextlib.suppress(_NotThereError),
                _told(f"{_title(each, self._name)} could not be removed"),
            ):
                self._follow(self._zones.delete_rrset(each).action, each)

    def _follow(self, action: BoundAction, what: ZoneRRSet) -> None:
        """Note that ``action`` is under way, and wait when there are many."""
        if action.status != "success":
            self._under_way[action.id] = _title(what, self._name)
        if len(self._under_way) >= _AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        """Wait for all that is under way, by questions about all of it at once."""
        with _told(f"whether the zone {self._name} took the records cannot be told"):
            for _ in range(_POLLS):
                if not self._of_ours("running"):
                    break
                time.sleep(_POLL)
            else:
                raise SiteRecordsError(
                    f"the zone {self._name} does not take {next(iter(self._under_way.values()))} within"
                    f" {_POLL * _POLLS:.0f} seconds. Run it again: what was done is kept."
                )
            failed = self._of_ours("error")
        for action in failed:
            with _told(f"the zone {self._name} did not take {self._under_way[action.id]}"):
                raise ActionFailedException(action)
        self._under_way.clear()

    def _of_ours(self, status: Any) -> list[BoundAction]:
        if not self._under_way:
            return []
        found = self._zones.get_actions(self._zone, status=[status])
        return [action for action in found if action.id in self._under_way]


class _NotThereError(SiteRecordsError):
    """The API has no such zone or record set."""


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Raise the API's errors as ``SiteRecordsError`` that says ``what`` went wrong."""
    try:
        yield
    except API_ERRORS as error:
        code = getattr(error, "code", None)
        kind = _NotThereError if code == "not_found" else SiteRecordsError
        mend = UNAUTHORIZED_MEND if code == "unauthorized" else "run it again: what was done is kept"
        raise kind(f"{what}. {meaning(error)}; {mend}.") from None


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """Have Pulumi show the message of a ``SiteRecordsError`` alone: what Python prints of it is shown."""
    try:
        yield
    except SiteRecordsError:
        sys.tracebacklimit = 0
        raise


def _wanted(props: Mapping[str, Any]) -> dict[str, ZoneRRSet]:
    """Return the record sets that ``props``, the resource's inputs, ask for, by id."""
    addresses: dict[Any, Any] = {"A": props.get("ipv4"), "AAAA": props.get("ipv6")}
    sets = [
        ZoneRRSet(
            name=name,
            type=type_,
            # Pulumi's numbers are floating-point ones.
            ttl=int(props["ttl"]),
            labels=dict(props["labels"]),
            records=[ZoneRecord(address)],
        )
        for name in props["names"]
        for type_, address in addresses.items()
        if address
    ]
    return {str(each.id): each for each in sets}


def _true_names(props: Mapping[str, Any], found: Iterable[ZoneRRSet]) -> list[str]:
    """Return the names of ``props`` whose record sets are all as they should be, and others of ``found``."""
    wanted, there = _wanted(props), {str(each.id): each for each in found}
    names = set(props["names"])
    differ = {
        id_.rpartition("/")[0]
        for id_ in wanted.keys() | there.keys()
        if id_ not in wanted or id_ not in there or not _is_as(there[id_], wanted[id_])
    }
    return sorted((names - differ) | {str(each.name) for each in there.values()} - names)


def _is_as(there: ZoneRRSet, wanted: ZoneRRSet) -> bool:
    return (there.labels, there.ttl, _values(there)) == (wanted.labels, wanted.ttl, _values(wanted))


def _values(rrset: ZoneRRSet) -> list[str]:
    return sorted(record.value for record in rrset.records or [])


def _title(rrset: ZoneRRSet, zone: str) -> str:
    return f"{full_name(str(rrset.name), zone)} {rrset.type}"


def _owner(rrset: ZoneRRSet) -> str:
    return (rrset.labels or {}).get(STACK_LABEL, "")
