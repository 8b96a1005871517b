"""
What the real plugin does with the arguments, beyond what its SDK tells.

The plugin (https://github.com/pulumi/pulumi-docker) wraps the Terraform provider
https://github.com/kreuzwerker/terraform-provider-docker, here at v4.5.0: the tables follow
``internal/provider/resource_docker_{container,network,volume,image}.go`` there (``ForceNew``,
``Computed``, ``Default``, ``TypeSet``, ``ValidateDiagFunc``), under the names of the SDK.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import cache
from typing import Any

from sandbox.provider.behaviour import Behaviour, at_least, matches

from .durations import parse_duration
from .ports import compared_ports
from .schema import resource_schemas


def _duration(value: Any) -> str | None:
    try:
        nanoseconds = parse_duration(value)
    except ValueError:
        return f"'{value}' is not a valid duration"
    return f"'{value}' duration must not be negative" if nanoseconds < 0 else None


def _base64(value: Any) -> str | None:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return f"'{value}' is not base64 decodeable"
    return None


def _absolute(value: Any) -> str | None:
    # the upstream pattern takes Windows paths too; this daemon runs on Linux
    return None if value.startswith("/") else f"'{value}' must be an absolute path"


def _command_word(value: Any) -> str | None:
    return None if value else "values for command may not be empty"


_LEGACY_ONLY = (
    "the stand-in builds with the daemon's classic builder only and needs useLegacyBuilder to be true"
)


def _only_true(value: Any) -> str | None:
    return None if value else _LEGACY_ONLY


def _legacy_build(checked: Mapping[str, Any]) -> tuple[str, str] | None:
    build = checked.get("build")
    if not isinstance(build, dict) or "useLegacyBuilder" in build:
        return None
    return "build", _LEGACY_ONLY[0].upper() + _LEGACY_ONLY[1:]


_DEVICES = "limits of devices and GPUs are not carried"
_NOT_IN_LIBRARY = "the docker library it uses has no such option"
_NEWER = "how the real plugin treats it could not be checked"

_TIMEOUTS = dict.fromkeys(("create", "delete", "update"), 20 * 60)
"""Of ``resource_docker_container.go`` and ``resource_docker_image.go``."""

_NETWORK = Behaviour(
    updates_in_place=frozenset(),
    computed=frozenset({"driver", "options", "internal", "ipamConfigs"}),
    sets=frozenset({"labels", "ipamConfigs"}),
    defaults={"ipamDriver": "default"},
    schema_version=1,
)

_VOLUME = Behaviour(
    updates_in_place=frozenset({"cluster"}),
    computed=frozenset({"driver"}),
    sets=frozenset({"labels"}),
    defaults={},
    refused={"cluster": "cluster volumes need a swarm"},
    schema_version=1,
)

_BUILD_CARRIED = frozenset(
    {
        "context",
        "dockerfile",
        "useLegacyBuilder",
        "buildArgs",
        "labels",
        "tags",
        "remove",
        "noCache",
        "forceRemove",
        "pullParent",
        "target",
        "platform",
        "networkMode",
        "extraHosts",
        "cacheFroms",
    }
)
_BUILD_REASONS = {
    "label": "the real plugin's legacy builder leaves it out without a word; use labels",
    "builder": "it belongs to buildx",
    "buildLogFile": "it belongs to buildx",
    "additionalContexts": "it belongs to buildx",
    "cacheTos": "it belongs to buildx",
    "provenance": "it belongs to buildx",
    "sbom": "it belongs to buildx",
    "secrets": "it belongs to BuildKit",
}


@cache
def _remote_image() -> Behaviour:
    build = resource_schemas()["docker:index/remoteImage:RemoteImage"].arguments["build"].type.properties
    return Behaviour(
        updates_in_place=frozenset({"keepLocally", "forceRemove"}),
        computed=frozenset(),
        sets=frozenset({"pullTriggers"}),
        defaults={"build.dockerfile": "Dockerfile", "build.remove": True},
        refused={
            f"build.{name}": _BUILD_REASONS.get(name, "the stand-in's classic builder does not carry it")
            for name in build
            if name not in _BUILD_CARRIED
        },
        validators={"build.useLegacyBuilder": _only_true},
        rules=(_legacy_build,),
        conflicts=(("build", "pullTriggers"),),
        autonamed=False,
        timeouts=_TIMEOUTS,
    )


_CONTAINER = Behaviour(
    updates_in_place=frozenset(
        {
            "attach",
            "containerReadRefreshTimeoutMilliseconds",
            "cpuPeriod",
            "cpuQuota",
            "cpuSet",
            "cpuShares",
            "destroyGraceSeconds",
            "deviceReadBps",
            "deviceReadIops",
            "deviceWriteBps",
            "deviceWriteIops",
            "healthcheck",
            "init",
            "logs",
            "maxRetryCount",
            "memory",
            "memoryReservation",
            "memorySwap",
            "mustRun",
            "removeVolumes",
            "restart",
            "rm",
            "start",
            "tmpfs",
            "wait",
            "waitTimeout",
        }
    ),
    computed=frozenset(
        {
            "command",
            "entrypoints",
            "envs",
            "healthcheck",
            "hostname",
            "init",
            "ipcMode",
            "labels",
            "logDriver",
            "platform",
            "runtime",
            "securityOpts",
            "shmSize",
            "stopSignal",
            "stopTimeout",
        }
    ),
    computed_nested=frozenset({"ports.external"}),
    kept_when_unset=frozenset({"user", "workingDir"}),
    read_back=frozenset({"command", "entrypoints", "networkDatas"}),
    compared_as={"ports": compared_ports},
    sets=frozenset(
        {
            "capabilities.adds",
            "capabilities.drops",
            "deviceReadBps",
            "deviceReadIops",
            "deviceRequests",
            "deviceWriteBps",
            "deviceWriteIops",
            "devices",
            "dns",
            "dnsOpts",
            "dnsSearches",
            "envs",
            "groupAdds",
            "hosts",
            "labels",
            "mounts",
            "mounts.volumeOptions.labels",
            "networksAdvanced",
            "networksAdvanced.aliases",
            "networksAdvanced.driverOpts",
            "networksAdvanced.linkLocalIps",
            "securityOpts",
            "ulimits",
            "uploads",
            "volumes",
        }
    ),
    defaults={
        "attach": False,
        "containerReadRefreshTimeoutMilliseconds": 15000,
        "devices.permissions": "rwm",
        "healthcheck.interval": "0s",
        "healthcheck.startInterval": "0s",
        "healthcheck.startPeriod": "0s",
        "healthcheck.timeout": "0s",
        "logs": False,
        "memoryReservation": 0,
        "mustRun": True,
        "networkMode": "bridge",
        "ports.ip": "0.0.0.0",  # noqa: S104 - the documented default of the argument
        "ports.protocol": "tcp",
        "readOnly": False,
        "removeVolumes": True,
        "restart": "no",
        "rm": False,
        "start": True,
        "stdinOpen": False,
        "tty": False,
        "uploads.executable": False,
        "wait": False,
        "waitTimeout": 60,
    },
    refused={
        "deviceCgroupRules": _NEWER,
        "deviceReadBps": _DEVICES,
        "deviceReadIops": _DEVICES,
        "deviceRequests": _DEVICES,
        "deviceWriteBps": _DEVICES,
        "deviceWriteIops": _DEVICES,
        "gpus": _DEVICES,
        "mounts.volumeOptions.subpath": "it needs a newer Docker API than the stand-in speaks",
        "networksAdvanced.gwPriority": _NOT_IN_LIBRARY,
        "uploads.group": _NEWER,
        "uploads.owner": _NEWER,
    },
    validators={
        "cgroupnsMode": matches("^(private|host|)$"),
        "command": _command_word,
        "cpuPeriod": at_least(0),
        "cpuQuota": at_least(0),
        "cpuSet": matches(r"^\d+([,-]\d+)*$"),
        "cpuShares": at_least(0),
        "healthcheck.interval": _duration,
        "healthcheck.retries": at_least(0),
        "healthcheck.startInterval": _duration,
        "healthcheck.startPeriod": _duration,
        "healthcheck.timeout": _duration,
        "memory": at_least(0),
        "memoryReservation": at_least(0),
        "memorySwap": at_least(-1),
        "mounts.bindOptions.propagation": matches("^(private|rprivate|shared|rshared|slave|rslave)$"),
        "mounts.type": matches("^(bind|volume|tmpfs)$"),
        "restart": matches("^(no|on-failure|always|unless-stopped)$"),
        "shmSize": at_least(0),
        "uploads.contentBase64": _base64,
        "uploads.permissions": matches("^0[0-7]{3}$"),
        "volumes.hostPath": _absolute,
        "volumes.selinuxRelabel": matches("^(z|Z)$"),
    },
    conflicts=(("deviceRequests", "gpus"),),
    delete_before_replace=True,
    schema_version=2,
    timeouts=_TIMEOUTS,
)


@cache
def behaviours() -> Mapping[str, Behaviour]:
    """Return the behaviour of each carried resource type, by type token."""
    return {
        "docker:index/network:Network": _NETWORK,
        "docker:index/volume:Volume": _VOLUME,
        "docker:index/remoteImage:RemoteImage": _remote_image(),
        "docker:index/container:Container": _CONTAINER,
    }


PROVIDER_REFUSED = {
    "caMaterial": "the stand-in reaches other machines by ssh:// only",
    "certMaterial": "the stand-in reaches other machines by ssh:// only",
    "certPath": "the stand-in reaches other machines by ssh:// only",
    "context": "the stand-in reads no Docker contexts",
    "keyMaterial": "the stand-in reaches other machines by ssh:// only",
    "registryAuth": "the stand-in pulls with the Docker configuration file only",
}
"""Arguments of the provider resource that are not carried, with the reason."""
