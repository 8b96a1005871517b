"""What Hetzner Cloud says of a stack before Pulumi changes anything there."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import hcloud
import requests
from hcloud.actions import ActionException, ActionFailedException, BoundAction
from hcloud.firewalls import BoundFirewall
from hcloud.primary_ips import BoundPrimaryIP
from hcloud.server_types import BoundServerType
from hcloud.servers import BoundServer
from hcloud.ssh_keys import BoundSSHKey
from hcloud.zones import Zone

from components.hetzner_api import API_ERRORS, STACK_LABEL, UNAUTHORIZED_MEND, ApiError, api_client, meaning
from components.hetzner_host import address_name, server_name
from components.site_records import ADDRESSES_OR_ALIAS, described, full_name, in_the_way
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from settings import PROJECT, HetznerHost, Settings

# https://docs.hetzner.cloud/reference/cloud, section "Authentication"; the provider takes no other length:
# https://github.com/hetznercloud/terraform-provider-hcloud/blob/v1.66.1/hcloud/provider.go
_TOKEN_LENGTH = 64

# RFC 5737, RFC 3849 and RFC 2606: for use in documentation.
_DOCUMENTATION = [
    ipaddress.ip_network(network)
    for network in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
_EXAMPLE_NAME = re.compile(r"(\A|\.)example(\.(com|net|org))?\Z")

SERVER = "hcloud:index/server:Server"
_FIREWALL = "hcloud:index/firewall:Firewall"
_SSH_KEY = "hcloud:index/sshKey:SshKey"
_PRIMARY_IP = "hcloud:index/primaryIp:PrimaryIp"
_RECORD = "hcloud:index/zoneRrset:ZoneRrset"
_SITE_RECORDS = "pulumi-python:dynamic/hetzner:SiteRecords"
_Named = BoundServer | BoundFirewall | BoundSSHKey | BoundPrimaryIP


def server_urn(stack: str) -> str:
    """Return the URN that the program gives the server of ``stack``."""
    return f"urn:pulumi:{stack}::{PROJECT}::{PROJECT}:components:HetznerHost${SERVER}::host"


def client(token: str | None) -> hcloud.Client:
    """Return a client of the API for ``token``, at ``HCLOUD_ENDPOINT`` where that is set.

    Raises ``PrerequisiteError`` where there is no token, or none that can be right.
    """
    mend = (
        "export HCLOUD_TOKEN=...   (Hetzner Console: the project, Security, API tokens, Read & Write; or keep"
        " it as a secret of the stack: pulumi config set --secret hcloud:token)"
    )
    if not token:
        raise PrerequisiteError("there is no API token for Hetzner Cloud", mend)
    if len(token) != _TOKEN_LENGTH:
        raise PrerequisiteError(
            f"the API token for Hetzner Cloud has {len(token)} characters, and every one of theirs has 64",
            mend,
        )
    return api_client(token)


def server_of(deployment: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the server that an exported ``deployment`` has, or ``None``."""
    resources = deployment.get("resources") or []
    return next((r for r in resources if r.get("type") == SERVER and not r.get("delete")), None)


def find(api: hcloud.Client, server: Mapping[str, Any]) -> BoundServer | None:
    """Return the ``server`` of a deployment, or ``None`` if it was deleted behind Pulumi's back.

    Raises ``PrerequisiteError`` if the API does not say.
    """
    try:
        return api.servers.get_by_id(int(server["id"]))
    except hcloud.APIException as error:
        if error.code == "not_found":
            return None
        raise explained(error) from error
    except requests.RequestException as error:
        raise explained(error) from error


def switch_on(server: BoundServer, progress: Progress) -> None:
    """Switch ``server`` on if it is off, which a creation or a change of type that failed half way leaves it.

    Pulumi takes it for made. Raises ``PrerequisiteError`` if it does not go on.
    """
    if server.status != server.STATUS_OFF:
        return
    try:
        with progress.step(f"Switching on the server {server.name}, which is off"):
            server.power_on().wait_until_finished()
    except API_ERRORS as error:
        raise explained(error) from error


def remove_leftovers(  # noqa: PLR0913 - what there is, what is known, and what is wanted
    api: hcloud.Client,
    stack: str,
    deployment: Mapping[str, Any],
    since: dt.datetime | None,
    progress: Progress,
    *,
    wanted: Collection[str] = (),
) -> None:
    """Remove what an update of ``stack`` that was killed or failed has made, and its state has no id of.

    The next update makes it anew. Pulumi had noted that it was about to create
    it, or it was made ``since`` the update began that did not end well (``None``:
    the last one did). It has the stack's label, and nothing else uses it: a
    server has to be at the state's own addresses. The records of ``wanted``, names
    of sites, stay: the next update goes on with them. Raises ``PrerequisiteError``
    if the API does not do it.
    """
    begun = {
        (operation["resource"]["type"], str((operation["resource"].get("inputs") or {}).get("name")))
        for operation in deployment.get("pending_operations") or []
        if operation["type"] == "creating"
    }
    if not begun and since is None:
        return
    known = {(str(r.get("type")), str(r.get("id"))) for r in deployment.get("resources") or []}
    names = {*wanted, *_names_with_records(deployment)}

    def is_left(type_: str, found: _Named) -> bool:
        # The API gives whole seconds.
        lately = since and found.created and found.created >= since.replace(microsecond=0)
        begun_or_made = bool(lately) or (type_, found.name) in begun
        return (type_, str(found.id)) not in known and begun_or_made and not _is_in_use(found, known)

    try:
        labelled = f"{STACK_LABEL}={server_name(stack)}"
        # What the others are in use by goes first.
        for type_, kind in (
            (SERVER, api.servers),
            (_FIREWALL, api.firewalls),
            (_SSH_KEY, api.ssh_keys),
            (_PRIMARY_IP, api.primary_ips),
        ):
            for found in kind.get_all(label_selector=labelled):
                if is_left(type_, found):
                    what = type_.rpartition(":")[2]
                    with progress.step(f"Removing the {what} {found.name}, which a failed update left"):
                        _delete(found)
        for zone in api.zones.get_all():
            for record in zone.get_rrset_all(label_selector=labelled):
                name = full_name(str(record.name), str(zone.name))
                if (_RECORD, record.id) not in known and name not in names:
                    zone.delete_rrset(record).action.wait_until_finished()
    except API_ERRORS as error:
        raise explained(error) from error


def _names_with_records(deployment: Mapping[str, Any]) -> Iterator[str]:
    """Return the names whose records the state knows of as those of sites."""
    for resource in deployment.get("resources") or []:
        if resource.get("type") == _SITE_RECORDS and not resource.get("delete"):
            outputs = resource["outputs"]
            yield from (full_name(name, outputs["zone"]) for name in outputs.get("names") or [])


def records_of_sites(deployment: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return the URNs of records that ``deployment`` has one by one, and that are those of sites by now.

    They were the relay's own, or of before all sites' became one resource. That
    one takes them as they are, and Pulumi would remove them afterwards.
    """
    host = settings.host
    assert isinstance(host, HetznerHost)  # noqa: S101 - called for this kind alone
    names = {f"{name} {type_}" for site in settings.sites for name in site.names for type_ in ("A", "AAAA")}
    return [
        str(resource["urn"])
        for resource in deployment.get("resources") or []
        if resource.get("type") == _RECORD
        and resource["urn"].rpartition("::")[2] in names
        and resource["inputs"]["zone"] == host.dns_zone
    ]


def _is_in_use(found: _Named, known: Collection[tuple[str, str]]) -> bool:
    if isinstance(found, BoundServer):
        network = found.public_net
        addresses = (network.primary_ipv4, network.primary_ipv6) if network is not None else ()
        return not any((_PRIMARY_IP, str(each.id)) in known for each in addresses if each is not None)
    if isinstance(found, BoundFirewall):
        return bool(found.applied_to)
    return isinstance(found, BoundPrimaryIP) and found.assignee_id is not None


def _delete(found: _Named) -> None:
    if isinstance(found, BoundServer):
        # It is locked while it is being made, and may well fail at that.
        for action in found.get_actions(status=["running"]):
            with contextlib.suppress(ActionFailedException):
                action.wait_until_finished()
    done = found.delete()
    if isinstance(done, BoundAction):
        done.wait_until_finished()


def check_can_be_deleted(deployment: Mapping[str, Any], where: str) -> None:
    """Raise ``PrerequisiteError`` if Hetzner would refuse to delete the server, having shut it down."""
    server = server_of(deployment)
    if server is not None and server["outputs"].get("deleteProtection"):
        raise PrerequisiteError(
            f"the server {server['outputs'].get('name')} is protected from deletion; nothing was changed",
            f"set host.deleteProtection: false in {where}, bring the stack up, then run it again",
        )


def check(
    api: hcloud.Client, stack: str, settings: Settings, deployment: Mapping[str, Any], where: str
) -> None:
    """Raise ``PrerequisiteError`` with all that Hetzner Cloud would refuse; ``where`` is the stack file.

    Only what a stack that is not there yet would ask for: what there is keeps its type and image.
    """
    host = settings.host
    assert isinstance(host, HetznerHost)  # noqa: S101 - called for this kind alone
    try:
        found = [*_examples(settings, host), *_problems(api, stack, settings, host, deployment)]
    except API_ERRORS as error:
        raise explained(error) from error
    if found:
        raise PrerequisiteError(
            f"{where} does not fit Hetzner Cloud; nothing was changed\n"
            + "\n".join(f"  {what}:\n    {mend}" for what, mend in found),
            "do what stands under each, then run it again",
        )


def _examples(settings: Settings, host: HetznerHost) -> Iterator[tuple[str, str]]:
    """Find what still stands as this project's example stacks have it: a server would be made in vain."""
    networks = [ipaddress.ip_network(network) for network in host.ssh_from]
    if all(any(network.network_address in each for each in _DOCUMENTATION) for network in networks):
        yield (
            f"host.sshFrom: {', '.join(host.ssh_from)} is the example's, from where nobody can come",
            "Give your own address, which `curl -4 https://icanhazip.com` shows.",
        )
    if settings.certificate.source != "internal" and _EXAMPLE_NAME.search(settings.domain):
        yield (
            f"domain: {settings.domain} is the example's, for which nobody gets a certificate",
            "Give a name of a domain of yours.",
        )


def _problems(
    api: hcloud.Client, stack: str, settings: Settings, host: HetznerHost, deployment: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    types = api.server_types.get_all()
    wanted = next((each for each in types if each.name == host.server_type), None)
    if api.locations.get_by_name(host.location) is None:
        there = ", ".join(sorted(str(each.name) for each in api.locations.get_all()))
        yield f"host.location: there is no location {host.location}", f"Give one of {there}."
    elif wanted is None:
        yield (
            f"host.serverType: there is no server type {host.server_type}",
            f"Give one that {host.location} has: {_offered(types, host.location)}.",
        )
    elif not _available(wanted, host.location) and server_of(deployment) is None:
        yield (
            f"host.serverType: {host.server_type} is not to be had in {host.location} now",
            f"Give one that is: {_offered(types, host.location)}.",
        )
    architecture = "arm" if host.architecture == "arm64" else "x86"
    if api.images.get_by_name_and_architecture(host.image, architecture) is None:
        names = {str(each.name) for each in api.images.get_all(type=["system"], architecture=[architecture])}
        ours = ", ".join(sorted(name for name in names if name.startswith(("debian-", "ubuntu-"))))
        yield f"host.image: there is no image {host.image} for {architecture}", f"Give one of {ours}."
    if host.dns_zone is not None and not api.zones.get_all(name=host.dns_zone):
        yield (
            f"host.dnsZone: this project at Hetzner has no zone {host.dns_zone}",
            "Make it in the Hetzner Console and point the domain's name servers at it, or leave dnsZone out.",
        )
    elif host.dns_zone is not None:
        yield from _records_in_the_way(api, stack, settings, host, deployment)
    yield from _names(api, stack, host.location, deployment)


def _records_in_the_way(
    api: hcloud.Client, stack: str, settings: Settings, host: HetznerHost, deployment: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Find record sets of somebody else's of those names that the state has no records of.

    For the others the zone, which may have thousands, is not looked through.
    """
    zone = str(host.dns_zone)
    known = {*_names_with_records(deployment)}
    names = {settings.domain, *(name for site in settings.sites for name in site.names)} - known
    records = {record for record in map(host.record_name, names) if record is not None}
    types = ["A", "AAAA"] if settings.network.ipv6 else ["A"]
    ids = {f"{record}/{type_}" for record in records for type_ in types}
    ids -= {str(r.get("id")) for r in deployment.get("resources") or [] if r.get("type") == _RECORD}
    if not ids:
        return
    found = api.zones.get_rrset_all(Zone(name=zone), type=ADDRESSES_OR_ALIAS)
    if others := in_the_way(found, ids, server_name(stack)):
        yield (
            f"host.dnsZone: {zone} has records that are not this stack's: {described(others, zone)}",
            "Delete them in the Hetzner Console, or take the names out of sites and domain.",
        )


def _names(
    api: hcloud.Client, stack: str, location: str, deployment: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Find what has a name already that the stack would give: a name is once in a project."""
    name = server_name(stack)
    known = {(r.get("type"), str(r.get("id"))) for r in deployment.get("resources") or []}
    asked: list[tuple[str, str, Any, str]] = [
        (SERVER, "server", api.servers, name),
        (_FIREWALL, "firewall", api.firewalls, name),
        (_SSH_KEY, "SSH key", api.ssh_keys, name),
        *(
            (_PRIMARY_IP, "primary IP", api.primary_ips, address_name(stack, location, version))
            for version in ("ipv4", "ipv6")
        ),
    ]
    for type_, what, kind, wanted in asked:
        other = kind.get_by_name(wanted)
        if other is not None and (type_, str(other.id)) not in known:
            yield (
                f"there is a {what} {wanted} (id {other.id}) at Hetzner, which is not this stack's",
                (
                    "Delete it in the Hetzner Console if an older state of this stack made it, give the stack"
                    " another name, or use another project's token."
                ),
            )


def _available(server_type: BoundServerType, location: str) -> bool:
    locations = server_type.locations or []
    return any(each.location.name == location and getattr(each, "available", True) for each in locations)


def _offered(types: list[BoundServerType], location: str) -> str:
    return ", ".join(str(each.name) for each in types if _available(each, location)) or "none at this moment"


def explained(error: ApiError) -> PrerequisiteError:
    """Return what the API's ``error`` means, and how to mend it."""
    if isinstance(error, ActionException):
        mend = "see the server in the Hetzner Console; then run it again"
    elif not isinstance(error, hcloud.APIException):
        mend = "see to this machine's network, then run it again"
    elif error.code == "unauthorized":
        mend = UNAUTHORIZED_MEND
    else:
        mend = "wait a minute, then run it again: nothing was changed"
    return PrerequisiteError(meaning(error), mend)
