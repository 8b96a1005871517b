"""The only reader of Pulumi's config, and of the stack files that it comes from."""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi
import yaml
from pulumi.runtime import config as runtime_config
from pydantic import SecretStr, ValidationError

from settings.base import PROJECT_FOLDER
from settings.model import PRIVATE_SUFFIXES, Settings
from settings.problems import Problem, SettingsError, problems_of

PROJECT = "derp-relays"
STACK_FOLDER = PROJECT_FOLDER / "stacks"

# The first version of derper with TS_DEBUG_TRUSTED_CIDRS:
# https://github.com/tailscale/tailscale/blob/v1.98.0/tsweb/tsweb.go
_DEBUG_BY_SUBNET = (1, 98)


def stack_file(stack: str) -> Path:
    """Return the path of the file with the settings of ``stack``."""
    return STACK_FOLDER / f"Pulumi.{stack}.yaml"


def stack_names() -> list[str]:
    """Return the stacks that have a file here, sorted."""
    return sorted(path.stem.removeprefix("Pulumi.") for path in STACK_FOLDER.glob("Pulumi.*.yaml"))


# https://github.com/pulumi/pulumi/blob/v3.250.0/sdk/go/common/tokens/stack_name.go
_STACK_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without keys that are given twice: PyYAML takes the last one, Pulumi refuses the file."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - as inherited
        """Return the mapping of ``node``; raises ``yaml.YAMLError`` at a key that was there before."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_pulumi_config() -> Settings:
    """Read the settings of the stack that Pulumi runs the program for.

    Raises ``SettingsError`` with all bad values.
    """
    raw = {**runtime_config.get_config_env(), **runtime_config.CONFIG.get()}
    where = f"stacks/Pulumi.{pulumi.get_stack()}.yaml"
    prefix = f"{PROJECT}:"
    settings = settings_from_text(
        {key.removeprefix(prefix): text for key, text in raw.items() if key.startswith(prefix)}, where
    )
    host, mend = settings.host, f"Run `make setup STACK={pulumi.get_stack()}`, which makes it."
    missing = []
    if host.kind == "hetzner" and settings.ssh_host_key is None:
        missing.append(Problem(f"{PROJECT}:sshHostKey", "is missing", mend))
    own = host.kind == "local" or (host.kind == "ssh" and host.deploy_key is not None)
    if not own and settings.ssh_deploy_key is None:
        missing.append(Problem(f"{PROJECT}:sshDeployKey", "is missing", mend))
    if missing:
        raise SettingsError(where, missing)
    return settings


def settings_from_text(values: Mapping[str, str], where: str) -> Settings:
    """Check ``values`` as Pulumi hands them over: as `settings_from`, with groups and lists as JSON."""
    return settings_from({key: _parsed(text) for key, text in values.items()}, where)


def _parsed(text: str) -> Any:
    # Pulumi hands over groups and lists as JSON, and everything else as bare text.
    if text[:1] in {"{", "["}:
        # Bare text may begin so too, such as an address in brackets.
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text)
    return text


def read_stack_file(stack: str) -> Settings:
    """Read the settings of ``stack`` from its file, as Pulumi would, without running Pulumi.

    Secrets, which only Pulumi can open, are left out; those in ``siteSecrets``
    have their names alone. Raises ``SettingsError`` if the file is missing, is no
    YAML or has bad values.
    """
    where = f"stacks/Pulumi.{stack}.yaml"
    config = _config_of(stack)
    unread = [*_misnamed_keys(config), *_secrets_in_clear_text(config, stack)]
    if unread:
        raise SettingsError(where, unread)
    given = {
        key.removeprefix(f"{PROJECT}:"): value
        for key, value in config.items()
        if str(key).startswith(f"{PROJECT}:")
    }
    sealed = {key for key, value in given.items() if _is_sealed(value)}
    values = {key: value for key, value in given.items() if key not in sealed}
    if isinstance(values.get("siteSecrets"), dict):
        values["siteSecrets"] = dict.fromkeys(values["siteSecrets"], SecretStr("sealed"))
    return settings_from(values, where, sealed)


def _secrets_in_clear_text(config: Mapping[Any, Any], stack: str) -> Iterator[Problem]:
    """Find secrets of sites that everybody can read who has the file."""
    key = f"{PROJECT}:siteSecrets"
    secrets = config.get(key)
    if not isinstance(secrets, dict) or _is_sealed(secrets):
        return
    for name, value in secrets.items():
        if not _is_sealed(value):
            yield Problem(
                f"{key}.{name}",
                "is in clear text",
                f"Take it out, and run `pulumi config set --secret --path '{key}.{name}' --stack {stack}`.",
            )


def _is_sealed(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"secure"}


def _config_of(stack: str) -> Mapping[Any, Any]:
    """Return what stands under ``config`` in the file of ``stack``."""
    path = stack_file(stack)
    where = f"stacks/Pulumi.{stack}.yaml"
    if not _STACK_NAME.fullmatch(stack):
        problem = Problem(
            f"stack {stack!r}",
            "is no name of a stack",
            "Use letters, digits, '-', '_' and '.', such as home.",
        )
        raise SettingsError(where, [problem])
    try:
        content = yaml.load(path.read_text(), _UniqueKeyLoader) or {}  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        there = ", ".join(stack_names())
        problem = Problem(
            where, "is not there", f"Make it, or name one of the stacks that are: {there or 'none'}."
        )
        raise SettingsError(where, [problem]) from None
    except UnicodeDecodeError as error:
        problem = Problem(where, f"is not UTF-8 (byte {error.start})", "Save it as UTF-8.")
        raise SettingsError(where, [problem]) from None
    except OSError as error:
        problem = Problem(where, f"cannot be read: {error.strerror}", "See to its permissions and its kind.")
        raise SettingsError(where, [problem]) from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = "" if line is None else f", line {line + 1}"
        problem = Problem(where + at, f"is no YAML: {getattr(error, 'problem', error)}", "Mend that line.")
        raise SettingsError(where, [problem]) from None
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        given = isinstance(content, dict) and "config" in content
        what = "has no settings" if given else "is missing"
        raise SettingsError(where, [Problem("config", what, "Give the settings under the key config.")])
    return config


def _misnamed_keys(config: Mapping[Any, Any]) -> Iterator[Problem]:
    """Find settings that would else be left out silently: without the project's name, or with one like it."""
    for key in map(str, config):
        project, colon, name = key.rpartition(":")
        if not colon and name in Settings.model_fields:
            yield Problem(key, "has no project before it", f"Write {PROJECT}:{name}.")
        elif project != PROJECT and difflib.get_close_matches(project, [PROJECT]):
            yield Problem(key, f"is for a project {project}", f"Write {PROJECT}:{name}.")


def settings_from(values: Mapping[str, Any], where: str, sealed: Collection[str] = ()) -> Settings:
    """Check ``values``, by their keys without the project's name, and return the settings.

    ``where`` is the stack file that they come from, and ``sealed`` has the keys
    in it that only Pulumi can open. Empty values count as not given. Raises
    ``SettingsError`` with every bad value.
    """
    # Pulumi.yaml gives every key an empty default, since Pulumi itself would
    # otherwise stop at the first missing one with no word on how to mend it.
    given = {key: value for key, value in values.items() if value not in ("", None)}
    if given.get("region") == {}:
        del given["region"]
    problems: list[Problem] = []
    unknown = set(sealed)
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        problems = problems_of(error, Settings, f"{PROJECT}:")
        unknown |= {str(details["loc"][0]) for details in error.errors()}
        settings = _sound_part(given, [details["loc"] for details in error.errors()])
    contradictions = [*_contradictions(settings)]
    if "siteSecrets" not in unknown:
        contradictions += _secrets_that_are_not_given(settings)
    problems += [Problem(f"{PROJECT}:{found.key}", found.what, found.mend) for found in contradictions]
    if problems:
        raise SettingsError(where, problems)
    return settings


def _sound_part(given: Mapping[str, Any], wrong: Sequence[tuple[int | str, ...]]) -> Settings:
    """Return settings from those of ``given`` that nothing is ``wrong`` in, and defaults for the others.

    Values that contradict each other can so be told in the same message as bad
    ones; the defaults contradict nothing.
    """
    bad = {str(path[0]) for path in wrong}
    sites = given.get("sites")
    if isinstance(sites, list) and ("sites",) not in wrong:
        bad.discard("sites")
        in_sites = [path[1:] for path in wrong if path[0] == "sites"]
        given = {**given, "sites": [_sound_site(site, n, in_sites) for n, site in enumerate(sites)]}
    stand_ins: dict[str, Any] = {"domain": "not-given.example", "region": {"id": 900, "code": "none"}}
    if "certificate" in bad:
        stand_ins["certificate"] = {"source": "internal"}
    sound = {key: value for key, value in given.items() if key not in bad}
    return Settings.model_validate({**stand_ins, **sound})


def _sound_site(site: Any, number: int, wrong: Sequence[tuple[int | str, ...]]) -> Any:
    """Return ``site``, which has this number, or its names alone if something is ``wrong`` in it."""
    paths = [path[1:] for path in wrong if path[0] == number]
    if not paths:
        return site
    names_are_good = isinstance(site, dict) and "names" in site and all("names" not in path for path in paths)
    names = site["names"] if names_are_good else [f"not-given-{number}.example"]
    return {"names": names, "redirect": "https://not-given.example"}


def _contradictions(settings: Settings) -> Iterator[Problem]:
    """Find values that are right by themselves and wrong together."""
    caddy, derper, certificate = settings.caddy, settings.derper, settings.certificate
    if caddy.http_port == caddy.https_port:
        yield Problem(
            "caddy.httpPort", f"{caddy.http_port} is httpsPort as well", "Give two different ports."
        )
    if derper.stun_port == caddy.https_port:
        yield Problem(
            "derper.stunPort",
            f"{derper.stun_port}/udp is taken by HTTP/3 on caddy.httpsPort",
            "Give two different ports; STUN's own is 3478.",
        )
    if derper.container_name == caddy.container_name:
        yield Problem(
            "caddy.containerName",
            f"{caddy.container_name!r} is derper's name as well",
            "Give two different names.",
        )
    host = settings.host
    if host.kind != "hetzner" and host.ipv6 and not settings.network.ipv6:
        # clients would choose an address on which nothing answers
        yield Problem(
            "host.ipv6",
            f"{host.ipv6} is given, but network.ipv6 is false",
            "Leave it out, since nothing is published over IPv6, or set network.ipv6: true.",
        )
    if certificate.email and certificate.source not in {"acme", "acme-staging"}:
        yield Problem(
            "certificate.email",
            f"has no use with source {certificate.source}",
            "Leave it out, or set certificate.source to acme.",
        )
    yield from _what_metrics_need(settings)
    yield from _names_given_twice(settings)
    yield from _names_that_acme_refuses(settings)
    yield from _folders_of_another_machine(settings)
    yield from _names_outside_of_the_zone(settings)


def _what_metrics_need(settings: Settings) -> Iterator[Problem]:
    metrics, version, host = settings.metrics, settings.derper.version, settings.host
    if metrics is None:
        return
    if version and tuple(map(int, re.findall(r"\d+", version)[:2])) < _DEBUG_BY_SUBNET:
        yield Problem(
            "derper.version",
            f"{version} tells no metrics by subnet",
            "Give 1.98.0 or later, or leave metrics out.",
        )
    ipv4 = None if host.kind == "hetzner" else host.ipv4
    if ipv4 and ipaddress.IPv4Address(ipv4) in ipaddress.IPv4Network(metrics.subnet):
        yield Problem(
            "metrics.subnet",
            f"{metrics.subnet} has host.ipv4 in it, {ipv4}",
            "Give a subnet that nothing else uses, such as 172.31.254.0/28.",
        )
    if metrics.network == settings.network.name:
        yield Problem(
            "metrics.network",
            f"{metrics.network!r} is network.name as well",
            "Leave it out: metrics have a network of their own.",
        )


def _folders_of_another_machine(settings: Settings) -> Iterator[Problem]:
    """Find folders that the host would look for on its own disk, where it runs elsewhere."""
    if settings.host.kind == "local":
        return
    given = {
        "caddy.configFolder": settings.caddy.config_folder,
        "caddy.siteFolder": settings.caddy.site_folder,
    }
    for key, folder in given.items():
        if folder is not None:
            yield Problem(
                key,
                f"{folder} is on this machine, and Docker runs on another (host.kind: {settings.host.kind})",
                "Leave it out; a folder that a site names is copied there (docs/settings.md).",
            )


def _secrets_that_are_not_given(settings: Settings) -> Iterator[Problem]:
    for number, site in enumerate(settings.sites):
        for key, name in site.secrets():
            if name not in settings.site_secrets:
                yield Problem(
                    f"sites[{number}].{key}",
                    f"has {{secret.{name}}}, and siteSecrets has no {name or 'such name'}",
                    f"Run `pulumi config set --secret --path '{PROJECT}:siteSecrets.{name or 'NAME'}'`.",
                )


def _names_outside_of_the_zone(settings: Settings) -> Iterator[Problem]:
    host = settings.host
    if host.kind == "hetzner" and host.dns_zone and host.record_name(settings.domain) is None:
        yield Problem(
            "host.dnsZone",
            f"{settings.domain} is not in {host.dns_zone}",
            "Name the zone that has the relay's name, or leave dnsZone out and make the records yourself.",
        )


def _names_given_twice(settings: Settings) -> Iterator[Problem]:
    seen = {settings.domain: "domain"}
    for number, site in enumerate(settings.sites):
        for name in site.names:
            key = f"sites[{number}].names"
            if name in seen:
                yield Problem(key, f"{name} is given in {seen[name]} already", "Give each name once.")
            seen.setdefault(name, key)


def _names_that_acme_refuses(settings: Settings) -> Iterator[Problem]:
    source = settings.certificate.source
    if source not in {"acme", "acme-staging"}:
        return
    named = [("domain", settings.domain)]
    named += [(f"sites[{i}].names", name) for i, site in enumerate(settings.sites) for name in site.names]
    for key, name in named:
        if name.endswith(PRIVATE_SUFFIXES):
            yield Problem(
                key,
                f"no public authority signs {name}",
                "Use a public name, or set certificate.source to internal.",
            )
    # RFC 8555 section 8.3 and RFC 8737 section 3: challenges come to ports 80 and 443 only.
    if settings.caddy.http_port != 80 and settings.caddy.https_port != 443:  # noqa: PLR2004
        yield Problem(
            "certificate.source",
            f"{source} needs port 80 or 443, and caddy has neither",
            "Set caddy.httpPort: 80 and caddy.httpsPort: 443, or certificate.source to internal or files.",
        )
