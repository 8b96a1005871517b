"""Containers: arguments to Docker's API and back, and their life."""

from __future__ import annotations

import base64
import io
import tarfile
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import docker.errors
from docker.utils import version_lt

from sandbox.provider.errors import CancelledError, OperationError, PartlyCreatedError
from sandbox.provider.package import Creation
from sandbox.provider.values import is_empty

from .daemon import Daemon, is_missing, said
from .durations import format_duration, parse_duration
from .image import find_or_pull
from .network import labels_of

MEBIBYTE = 1024 * 1024
"""``memory`` and its kin are given in this (``resource_docker_container_funcs.go``: ``* 1024 * 1024``)."""

_UNCONFINED = "systempaths=unconfined"
"""A security option that clients resolve themselves (docker/cli, cli/command/container/opts.go)."""

_START_INTERVAL_API = "1.44"
"""First API version with a health check's start interval (https://docs.docker.com/reference/api/engine/version-history/)."""

_REMOVED_SECONDS = 60.0


def config(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Translate inputs to the body of Docker's ``POST /containers/create``.

    Networks are not part of it: they are connected one by one, as upstream does.
    Raises `OperationError` where arguments do not go together.
    """
    volumes, binds, volumes_from = volume_binds(inputs.get("volumes"))
    exposed, bindings = port_bindings(inputs.get("ports"))
    optional: dict[str, Any] = {
        "StopTimeout": inputs.get("stopTimeout") or None,
        "Env": inputs.get("envs") or None,
        "Cmd": inputs.get("command") or None,
        "Entrypoint": inputs.get("entrypoints") or None,
        "User": inputs.get("user") or None,
        "WorkingDir": inputs.get("workingDir") or None,
        "ExposedPorts": exposed or None,
        "Volumes": {path: {} for path in volumes} or None,
        "Labels": labels_of(inputs.get("labels")) or None,
        "Healthcheck": health_config(inputs["healthcheck"]) if inputs.get("healthcheck") else None,
    }
    return {
        "Image": inputs["image"],
        "Hostname": inputs.get("hostname") or "",
        "Domainname": inputs.get("domainname") or "",
        "Tty": bool(inputs.get("tty")),
        "OpenStdin": bool(inputs.get("stdinOpen")),
        "StopSignal": inputs.get("stopSignal") or "",
        **{key: value for key, value in optional.items() if value is not None},
        "HostConfig": host_config(inputs, binds, volumes_from, bindings),
    }


def host_config(
    inputs: Mapping[str, Any],
    binds: list[str],
    volumes_from: list[str],
    bindings: Mapping[str, list[dict[str, str]]],
) -> dict[str, Any]:
    """Translate inputs to Docker's ``HostConfig``."""
    capabilities = inputs.get("capabilities") or {}
    options = list(inputs.get("securityOpts") or [])
    optional: dict[str, Any] = {
        "Tmpfs": inputs.get("tmpfs"),
        "PortBindings": dict(bindings),
        "ExtraHosts": [f"{each['host']}:{each['ip']}" for each in inputs.get("hosts") or []],
        "Binds": binds,
        "VolumesFrom": volumes_from,
        "Mounts": [mount(each) for each in inputs.get("mounts") or []],
        "Ulimits": [
            {"Name": each["name"], "Soft": each["soft"], "Hard": each["hard"]}
            for each in inputs.get("ulimits") or []
        ],
        "CapAdd": normalized_capabilities(capabilities.get("adds")),
        "CapDrop": normalized_capabilities(capabilities.get("drops")),
        "Devices": [
            {
                "PathOnHost": each["hostPath"],
                "PathInContainer": each.get("containerPath") or each["hostPath"],
                "CgroupPermissions": each.get("permissions") or "rwm",
            }
            for each in inputs.get("devices") or []
        ],
        "Dns": inputs.get("dns"),
        "DnsOptions": inputs.get("dnsOpts"),
        "DnsSearch": inputs.get("dnsSearches"),
        "SecurityOpt": [option for option in options if option != _UNCONFINED],
        "Memory": _bytes(inputs.get("memory")),
        "MemoryReservation": _bytes(inputs.get("memoryReservation")),
        "MemorySwap": _bytes(inputs.get("memorySwap")),
        "ShmSize": _bytes(inputs.get("shmSize")),
        "CpuShares": inputs.get("cpuShares"),
        "CpusetCpus": inputs.get("cpuSet"),
        "NetworkMode": inputs.get("networkMode"),
        "UsernsMode": inputs.get("usernsMode"),
        "PidMode": inputs.get("pidMode"),
        "IpcMode": inputs.get("ipcMode"),
        "Sysctls": inputs.get("sysctls"),
        "GroupAdd": inputs.get("groupAdds"),
        "CgroupnsMode": inputs.get("cgroupnsMode"),
        "CgroupParent": inputs.get("cgroupParent"),
        "StorageOpt": inputs.get("storageOpts"),
        "Runtime": inputs.get("runtime"),
    }
    if inputs.get("cpus"):
        optional["NanoCpus"] = nano_cpus(inputs["cpus"])
    else:
        optional["CpuPeriod"] = inputs.get("cpuPeriod")
        optional["CpuQuota"] = inputs.get("cpuQuota")
    unconfined: dict[str, list[str]] = (
        {"MaskedPaths": [], "ReadonlyPaths": []} if _UNCONFINED in options else {}
    )
    return {
        "Privileged": bool(inputs.get("privileged")),
        "PublishAllPorts": bool(inputs.get("publishAllPorts")),
        "RestartPolicy": restart_policy(inputs),
        "AutoRemove": bool(inputs.get("rm")),
        "ReadonlyRootfs": bool(inputs.get("readOnly")),
        "Init": bool(inputs.get("init")),
        "LogConfig": {"Type": inputs.get("logDriver") or "", "Config": inputs.get("logOpts") or {}},
        **{key: value for key, value in optional.items() if not is_empty(value)},
        **unconfined,
    }


def _bytes(mebibytes: int | None) -> int | None:
    """Turn MiB into bytes; -1, which stands for no limit, stays."""
    if mebibytes is None or mebibytes <= 0:
        return mebibytes
    return mebibytes * MEBIBYTE


def normalized_capabilities(capabilities: Iterable[str] | None) -> list[str]:
    """
    Write capabilities as ``CAP_NET_ADMIN``, sorted, each once.

    The real plugin's Docker client does so (moby, client/container_create.go), and Docker keeps what
    it is sent: a program that leaves the prefix out gets a replacement after each refresh.
    """
    names = (name.upper() for name in capabilities or [])
    return sorted({name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}" for name in names})


def restart_policy(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate ``restart`` and ``maxRetryCount``."""
    return {"Name": inputs.get("restart") or "", "MaximumRetryCount": inputs.get("maxRetryCount") or 0}


def nano_cpus(cpus: str) -> int:
    """Turn ``"1.5"`` into billionths of a processor. Raises `OperationError` for no number."""
    try:
        return int(Decimal(cpus) * 1_000_000_000)
    except ArithmeticError as error:
        raise OperationError(f"Error setting cpus: {cpus!r} is not a number such as 1.5") from error


def health_config(healthcheck: Mapping[str, Any]) -> dict[str, Any]:
    """Translate ``healthcheck``; Docker takes nanoseconds."""
    return {
        "Test": healthcheck.get("tests") or [],
        "Interval": parse_duration(healthcheck.get("interval") or "0s"),
        "Timeout": parse_duration(healthcheck.get("timeout") or "0s"),
        "StartPeriod": parse_duration(healthcheck.get("startPeriod") or "0s"),
        "StartInterval": parse_duration(healthcheck.get("startInterval") or "0s"),
        "Retries": healthcheck.get("retries") or 0,
    }


def port_bindings(
    ports: Iterable[Mapping[str, Any]] | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, str]]]]:
    """Translate ``ports`` to ``ExposedPorts`` and ``PortBindings``; external 0 lets Docker choose."""
    exposed: dict[str, dict[str, Any]] = {}
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in ports or []:
        key = f"{port['internal']}/{port.get('protocol') or 'tcp'}"
        exposed[key] = {}
        bindings.setdefault(key, []).append(
            {"HostPort": str(port.get("external") or 0), "HostIp": port.get("ip") or ""}
        )
    return exposed, bindings


def volume_binds(volumes: Iterable[Mapping[str, Any]] | None) -> tuple[list[str], list[str], list[str]]:
    """
    Translate ``volumes`` to paths in the container, ``Binds`` and ``VolumesFrom``.

    Raises `OperationError` for an entry with neither or both of a path and a source container.
    """
    paths: list[str] = []
    binds: list[str] = []
    volumes_from: list[str] = []
    for volume in volumes or []:
        source, path = volume.get("fromContainer"), volume.get("containerPath")
        if not source and not path:
            raise OperationError(
                "Unable to parse volumes: volume entry without container path or source container"
            )
        if source and path:
            raise OperationError(
                "Unable to parse volumes: both a container and a path specified in a volume entry"
            )
        if source:
            volumes_from.append(source)
            continue
        assert path is not None  # noqa: S101 - one of the two is there
        paths.append(path)
        held_in = volume.get("hostPath") or volume.get("volumeName")
        if held_in:
            mode = "ro" if volume.get("readOnly") else "rw"
            if volume.get("selinuxRelabel"):
                mode += f",{volume['selinuxRelabel']}"
            binds.append(f"{held_in}:{path}:{mode}")
    return paths, binds, volumes_from


def mount(block: Mapping[str, Any]) -> dict[str, Any]:
    """Translate one of ``mounts``; like upstream with the options of the mount's own type only."""
    translated: dict[str, Any] = {
        "Type": block["type"],
        "Target": block["target"],
        "Source": block.get("source") or "",
        "ReadOnly": bool(block.get("readOnly")),
    }
    if block["type"] == "bind" and block.get("bindOptions"):
        translated["BindOptions"] = {"Propagation": block["bindOptions"].get("propagation") or ""}
    if block["type"] == "volume" and block.get("volumeOptions"):
        options = block["volumeOptions"]
        translated["VolumeOptions"] = {
            "NoCopy": bool(options.get("noCopy")),
            "Labels": labels_of(options.get("labels")),
            "DriverConfig": {
                "Name": options.get("driverName") or "",
                "Options": options.get("driverOptions") or {},
            },
        }
    if block["type"] == "tmpfs" and block.get("tmpfsOptions"):
        options = block["tmpfsOptions"]
        translated["TmpfsOptions"] = {
            "SizeBytes": options.get("sizeBytes") or 0,
            "Mode": options.get("mode") or 0,
        }
    return translated


def upload_archive(upload: Mapping[str, Any], modified: float) -> bytes:
    """
    Pack one of ``uploads`` as a tar archive to be unpacked at ``/``; ``modified`` in seconds since 1970.

    Raises `OperationError` if not exactly one content is given, or its file cannot be read.
    """
    given = [name for name in ("content", "contentBase64", "source") if upload.get(name)]
    if len(given) != 1:
        raise OperationError(
            f"cannot upload {upload['file']}: exactly one of 'content', 'content_base64', "
            f"or 'source' must be set, not {len(given)} of them"
        )
    if given == ["source"]:
        try:
            content = Path(upload["source"]).read_bytes()
        except OSError as error:
            raise OperationError(f"could not read file: {error}") from error
    elif given == ["contentBase64"]:
        content = base64.b64decode(upload["contentBase64"])
    else:
        content = upload["content"].encode()
    entry = tarfile.TarInfo(upload["file"])
    entry.size = len(content)
    entry.mtime = int(modified)
    # octal; the two modes without permissions are upstream's
    entry.mode = (
        int(upload["permissions"], 8)
        if upload.get("permissions")
        else (0o744 if upload.get("executable") else 0o644)
    )
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def endpoint(block: Mapping[str, Any]) -> dict[str, Any]:
    """Translate one of ``networksAdvanced`` to arguments of ``connect_container_to_network``."""
    options = dict(each.split("=", 1) for each in block.get("driverOpts") or [] if "=" in each)
    return {
        "net_id": block["name"],
        "aliases": block.get("aliases") or None,
        "ipv4_address": block.get("ipv4Address") or None,
        "ipv6_address": block.get("ipv6Address") or None,
        "link_local_ips": block.get("linkLocalIps") or None,
        "mac_address": block.get("macAddress") or None,
        "driver_opt": options or None,
    }


def observed(inspection: Mapping[str, Any], prior: Mapping[str, Any]) -> dict[str, Any]:
    """
    Translate what ``docker inspect`` says to properties, as far as upstream reads them back.

    ``prior`` is the state before: environment, labels, volumes and uploads are never read, ports,
    ulimits, devices and log options only where the program gives some, and a stopped container
    that should run shows as ``mustRun`` false.
    """
    settings, host, state = inspection["Config"], inspection["HostConfig"], inspection["State"]
    networks = inspection["NetworkSettings"].get("Networks") or {}
    found: dict[str, Any] = {
        "id": inspection["Id"],
        "name": inspection["Name"].lstrip("/"),
        "bridge": inspection["NetworkSettings"].get("Bridge") or "",
        "networkDatas": [network_data(name, each) for name, each in networks.items()],
        "rm": host["AutoRemove"],
        "readOnly": host["ReadonlyRootfs"],
        "image": inspection["Image"] if str(prior.get("image")).startswith("sha256:") else settings["Image"],
        "hostname": settings["Hostname"],
        "domainname": settings["Domainname"],
        "command": settings.get("Cmd") or [],
        "entrypoints": settings.get("Entrypoint") or [],
        "user": settings.get("User") or "",
        "dns": host.get("Dns") or [],
        "dnsOpts": host.get("DnsOptions") or [],
        "dnsSearches": host.get("DnsSearch") or [],
        "securityOpts": host.get("SecurityOpt") or [],
        "publishAllPorts": host["PublishAllPorts"],
        "restart": host["RestartPolicy"]["Name"],
        "maxRetryCount": host["RestartPolicy"]["MaximumRetryCount"],
        "init": bool(host.get("Init")),
        "workingDir": settings.get("WorkingDir") or "",
        "runtime": host.get("Runtime") or "",
        "platform": inspection.get("Platform") or "",
        "mounts": [mount_block(each) for each in host.get("Mounts") or []],
        "tmpfs": host.get("Tmpfs") or {},
        "hosts": [host_block(each) for each in host.get("ExtraHosts") or []],
        "privileged": host["Privileged"],
        "memory": host["Memory"] // MEBIBYTE,
        "memoryReservation": _mebibytes(host["MemoryReservation"]),
        "memorySwap": _mebibytes(host["MemorySwap"]),
        "shmSize": host["ShmSize"] // MEBIBYTE,
        "cpuShares": host["CpuShares"],
        "cpuSet": host["CpusetCpus"],
        "logDriver": host["LogConfig"]["Type"],
        "logOpts": (host["LogConfig"].get("Config") or {}) if not is_empty(prior.get("logOpts")) else None,
        "storageOpts": host.get("StorageOpt") or {},
        "networkMode": host["NetworkMode"],
        "usernsMode": host.get("UsernsMode") or "",
        "sysctls": host.get("Sysctls") or {},
        "ipcMode": host.get("IpcMode") or "",
        "groupAdds": host.get("GroupAdd") or [],
        "tty": settings["Tty"],
        "stdinOpen": settings["OpenStdin"],
        "stopSignal": settings.get("StopSignal") or "",
        "stopTimeout": settings.get("StopTimeout") or 0,
    }
    if host.get("CapAdd") or host.get("CapDrop"):
        found["capabilities"] = {"adds": host.get("CapAdd") or [], "drops": host.get("CapDrop") or []}
    if host.get("NanoCpus"):
        found["cpus"] = f"{Decimal(host['NanoCpus']) / 1_000_000_000:f}"
    if settings.get("Healthcheck") is not None:
        found["healthcheck"] = health_block(settings["Healthcheck"])
    if not is_empty(prior.get("pidMode")):
        found["pidMode"] = host.get("PidMode") or ""
    if not is_empty(prior.get("ulimits")):
        found["ulimits"] = [
            {"name": each["Name"], "soft": each["Soft"], "hard": each["Hard"]}
            for each in host.get("Ulimits") or []
        ]
    if not is_empty(prior.get("devices")):
        found["devices"] = device_blocks(host.get("Devices") or [], prior["devices"])
    if not is_empty(prior.get("ports")) and (state["Running"] or prior.get("mustRun")):
        found["ports"] = port_blocks(inspection["NetworkSettings"].get("Ports") or {})
    if not state["Running"]:
        found["exitCode"] = state["ExitCode"]
        if prior.get("mustRun"):
            found["mustRun"] = False
    return found


def _mebibytes(amount: int) -> int:
    return amount // MEBIBYTE if amount > 0 else amount


def network_data(name: str, endpoint_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate one entry of ``NetworkSettings.Networks``."""
    return {
        "networkName": name,
        "ipAddress": endpoint_settings["IPAddress"],
        "ipPrefixLength": endpoint_settings["IPPrefixLen"],
        "gateway": endpoint_settings["Gateway"],
        "globalIpv6Address": endpoint_settings["GlobalIPv6Address"],
        "globalIpv6PrefixLength": endpoint_settings["GlobalIPv6PrefixLen"],
        "ipv6Gateway": endpoint_settings["IPv6Gateway"],
        "macAddress": endpoint_settings["MacAddress"],
    }


def host_block(entry: str) -> dict[str, str]:
    """Translate one of ``ExtraHosts``; of an IPv6 address only the first group is read, as upstream."""
    parts = entry.split(":")
    return {"host": parts[0], "ip": parts[1]}


def health_block(health: Mapping[str, Any]) -> dict[str, Any]:
    """Translate Docker's ``Healthcheck``; Go writes the durations, so ``60s`` comes back as ``1m0s``."""
    return {
        "tests": health.get("Test") or [],
        "interval": format_duration(health.get("Interval") or 0),
        "timeout": format_duration(health.get("Timeout") or 0),
        "startPeriod": format_duration(health.get("StartPeriod") or 0),
        "startInterval": format_duration(health.get("StartInterval") or 0),
        "retries": health.get("Retries") or 0,
    }


def port_blocks(ports: Mapping[str, list[dict[str, str]] | None]) -> list[dict[str, Any]]:
    """Translate ``NetworkSettings.Ports``, sorted by internal port."""
    return [
        {
            "internal": int(key.split("/")[0]),
            "external": int(binding["HostPort"]),
            "ip": binding["HostIp"],
            "protocol": key.split("/")[1],
        }
        for key in sorted(ports, key=lambda each: (int(each.split("/")[0]), each))
        for binding in ports[key] or []
    ]


def device_blocks(devices: list[dict[str, str]], configured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Translate ``Devices``; the path inside shows only where the program gives it."""
    with_path = {each["hostPath"] for each in configured if each.get("containerPath")}
    return [
        {
            "hostPath": each["PathOnHost"],
            "containerPath": each["PathInContainer"] if each["PathOnHost"] in with_path else "",
            "permissions": each["CgroupPermissions"],
        }
        for each in devices
    ]


def mount_block(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Translate one of ``HostConfig.Mounts``."""
    volume, tmpfs, bind = entry.get("VolumeOptions"), entry.get("TmpfsOptions"), entry.get("BindOptions")
    driver = (volume or {}).get("DriverConfig") or {}
    return {
        "target": entry["Target"],
        "source": entry.get("Source") or "",
        "type": entry["Type"],
        "readOnly": bool(entry.get("ReadOnly")),
        "bindOptions": None if bind is None else {"propagation": bind.get("Propagation") or ""},
        "volumeOptions": None
        if volume is None
        else {
            "noCopy": bool(volume.get("NoCopy")),
            "labels": [{"label": key, "value": value} for key, value in (volume.get("Labels") or {}).items()],
            "driverName": driver.get("Name") or "",
            "driverOptions": driver.get("Options") or {},
        },
        "tmpfsOptions": None
        if tmpfs is None
        else {"sizeBytes": tmpfs.get("SizeBytes") or 0, "mode": tmpfs.get("Mode") or 0},
    }


def create(daemon: Daemon, inputs: Mapping[str, Any]) -> Creation:
    """
    Create, connect, fill and start a container, and wait for it as far as asked.

    Raises `OperationError` if nothing was made, `PartlyCreatedError` if the container is there but
    a later step failed; it is left for the next update to replace, as the real plugin does.
    """
    try:
        find_or_pull(daemon, inputs["image"])
    except OperationError as error:
        raise OperationError(f"Unable to create container with image {inputs['image']}: {error}") from error
    body = config(inputs)
    now = time.time()
    archives = [(upload["file"], upload_archive(upload, now)) for upload in inputs.get("uploads") or []]
    with daemon.explained("Unable to create container"):
        _refuse_unknown_to_daemon(daemon, inputs)
        identifier: str = daemon.api.create_container_from_config(
            body, name=inputs["name"], platform=inputs.get("platform") or None
        )["Id"]
    try:
        _connect(daemon, identifier, inputs)
        for file, archive in archives:
            with daemon.explained(f"Unable to upload volume content {file}"):
                daemon.api.put_archive(identifier, "/", archive)
        if inputs.get("start"):
            with daemon.explained("Unable to start container"):
                daemon.api.start(identifier)
            if inputs.get("wait"):
                _wait_healthy(daemon, identifier, inputs.get("waitTimeout") or 0)
        logs = _wait_end(daemon, identifier, inputs) if inputs.get("attach") else None
    except OperationError as error:
        raise PartlyCreatedError(identifier, str(error)) from error
    return Creation(identifier, {} if logs is None else {"containerLogs": logs})


def _refuse_unknown_to_daemon(daemon: Daemon, inputs: Mapping[str, Any]) -> None:
    """Older daemons leave out what they do not know without a word."""
    interval = (inputs.get("healthcheck") or {}).get("startInterval") or "0s"
    if parse_duration(interval) and version_lt(daemon.api.api_version, _START_INTERVAL_API):
        raise OperationError(
            f"healthcheck.startInterval needs Docker API {_START_INTERVAL_API}; "
            f"this daemon speaks {daemon.api.api_version}"
        )


def _connect(daemon: Daemon, identifier: str, inputs: Mapping[str, Any]) -> None:
    networks = inputs.get("networksAdvanced") or []
    if not networks:
        return
    with daemon.explained("Unable to disconnect the default network"):
        try:
            daemon.api.disconnect_container_from_network(identifier, "bridge")
        except docker.errors.APIError as error:
            if "is not connected to" not in said(error):
                raise
    for block in networks:
        with daemon.explained(f"Unable to connect to network '{block['name']}'"):
            daemon.api.connect_container_to_network(identifier, **endpoint(block))


def _wait_healthy(daemon: Daemon, identifier: str, seconds: float) -> None:
    health: dict[str, Any] = {}

    def healthy() -> bool:
        with daemon.explained("error inspecting container state"):
            state = daemon.api.inspect_container(identifier)["State"]
        found = state.get("Health")
        if found is None:
            raise OperationError(
                "'wait' needs a health check, but neither the program nor the image gives one: "
                "add 'healthcheck' or leave out 'wait'"
            )
        health.update(found)
        return bool(found["Status"] == "healthy")

    try:
        daemon.wait_until(healthy, seconds, "waiting for the container's health check")
    except CancelledError:
        raise
    except OperationError as error:
        if not health:
            raise
        last = (health.get("Log") or [{}])[-1]
        output = str(last.get("Output", "")).strip()
        said_last = (
            f"; the last check ended with {last['ExitCode']}: {output}"
            if last
            else "; no check has ended yet"
        )
        raise OperationError(
            f"the container did not become healthy in {seconds} seconds{said_last}"
        ) from error


def _wait_end(daemon: Daemon, identifier: str, inputs: Mapping[str, Any]) -> str | None:
    with daemon.explained("Unable to wait container end of execution"):
        daemon.wait_until(
            lambda: not _is_running(daemon, identifier),
            float("inf"),
            "Unable to wait container end of execution",
        )
    if not inputs.get("logs"):
        return None
    with daemon.explained("unable to read container logs"):
        written: bytes = daemon.api.logs(identifier, stdout=True, stderr=True)
    return written.decode(errors="replace")


def _is_running(daemon: Daemon, identifier: str) -> bool:
    try:
        return bool(daemon.api.inspect_container(identifier)["State"]["Running"])
    except docker.errors.NotFound:
        return False


def read(daemon: Daemon, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the properties of a container, None if there is none."""
    with daemon.explained("error fetching container information from Docker"):
        try:
            inspection = daemon.api.inspect_container(identifier)
        except docker.errors.NotFound:
            return None
    return observed(inspection, prior)


_UPDATED = ("restart", "maxRetryCount", "cpuShares", "memory", "memoryReservation", "cpuSet", "memorySwap")
"""What ``resourceDockerContainerUpdate`` upstream sends to Docker."""


def update(daemon: Daemon, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """
    Change what can be changed in place, from the old state to the new one.

    Like upstream it starts a stopped container and sends `_UPDATED`; of all else (health check,
    init, tmpfs, ...) it only takes note. Returns nothing that is not in the new state.
    """
    if not old.get("mustRun") and new.get("mustRun") and new.get("start"):
        with daemon.explained("Unable to start container"):
            daemon.api.start(identifier)
    if all(
        (is_empty(old.get(name)) and is_empty(new.get(name))) or old.get(name) == new.get(name)
        for name in _UPDATED
    ):
        return {}
    with daemon.explained("Unable to update a container"):
        daemon.api.update_container(
            identifier,
            cpu_shares=new.get("cpuShares") or None,
            cpuset_cpus=new.get("cpuSet") or None,
            mem_limit=_bytes(new.get("memory")) or None,
            mem_reservation=_bytes(new.get("memoryReservation")) or None,
            memswap_limit=_bytes(new.get("memorySwap")) or None,
            restart_policy=restart_policy(new),
        )
    return {}


def delete(daemon: Daemon, identifier: str, state: Mapping[str, Any]) -> None:
    """Stop a container, without ``destroyGraceSeconds`` at once, and remove it with its anonymous volumes."""
    if not state.get("attach"):
        with daemon.explained(f"Error stopping container {identifier}"):
            try:
                daemon.api.stop(identifier, timeout=state.get("destroyGraceSeconds") or 0)
            except docker.errors.APIError as error:
                if not is_missing(error):
                    raise
    with daemon.explained(f"Error deleting container {identifier}"):
        try:
            daemon.api.remove_container(identifier, v=bool(state.get("removeVolumes")), force=True)
        except docker.errors.APIError as error:
            if not is_missing(error) and "is already in progress" not in said(error):
                raise
        daemon.wait_until(
            lambda: read(daemon, identifier, {}) is None,
            _REMOVED_SECONDS,
            f"Error waiting for container removal '{identifier}'",
        )
