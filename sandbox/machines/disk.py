"""A server's disk: this machine's system with what makes it another, new machine's.

The programs under ``/usr`` and the configuration under ``/etc`` are this
machine's, read through an overlay; what the server writes stays on its disk.
Accounts, host keys, identity and configuration that belong to this machine or
to its people are not seen, and ``/var``, ``/root`` and ``/home`` are the server's own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sandbox.machines import MachineSpec

# Trees of the machine's that a server reads and writes through an overlay.
OVERLAYS = ("usr", "etc", "var/lib/dpkg")

# Debian Policy 9.2.2: identities from 1000 on are people's, but for nobody
_FIRST_PERSON = 1000
_NOBODY = 65534
_SHADOW = 42

_GUEST = Path(__file__).parent / "guest"
_INSIDE = "usr/lib/sandbox"
_STAND_INS = {
    "systemctl": ("usr/bin/systemctl",),
    "apt_get": ("usr/bin/apt-get",),
    "sysctl": ("usr/sbin/sysctl",),
}
# Modules of cloud-init that would reach for the machine's own disks, and why.
LEFT_OUT = {
    "growpart": "the disk is a folder",
    "resizefs": "the disk is a folder",
    "disk_setup": "there are no disks to set up",
    "mounts": "swap would be the whole machine's, and there are no disks to mount",
    "grub-dpkg": "a namespace has no boot loader",
    "install-hotplug": "a namespace has no udev",
}
_FOLDERS = (
    "boot",
    "dev",
    "home",
    "media",
    "mnt",
    "opt",
    "proc",
    "root/.ssh",
    "run",
    "srv",
    "sys",
    "tmp",
    "var/backups",
    "var/cache/apt/archives/partial",
    "var/lib/apt/lists/partial",
    "var/lib/cloud/seed/nocloud",
    "var/lib/docker",
    "var/lib/sandbox",
    "var/log",
    "var/mail",
    "var/spool",
    "var/tmp",
)
_LINKS = {"var/run": "/run", "var/lock": "/run/lock"}
# Folders of /etc that are seen as the disk has them, with nothing of the machine's.
_OWN_FOLDERS = ("ssh", "docker", "systemd/system", "cron.d", "sudoers.d", "cloud")


def make(disk: Path, spec: MachineSpec, package: Path, cgroup_parent: str) -> None:
    """Fill the empty folder ``disk`` with the disk of a new server.

    ``package`` is what cloud-init is unpacked in, ``cgroup_parent`` the control
    group that its containers go to. Raises ``OSError``; needs root.
    """
    root, etc, usr = disk / "root", disk / "upper/etc", disk / "upper/usr"
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for name in ("root", "root/.ssh"):
        (root / name).chmod(0o700)
    for link, target in _LINKS.items():
        (root / link).symlink_to(target)
    # merged /usr: where the machine has a link, the server has it too
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    for tree in OVERLAYS:
        (root / tree).mkdir(parents=True, exist_ok=True)
        (disk / "upper" / tree).mkdir(parents=True)
        (disk / "work" / tree).mkdir(parents=True)
    for name in (".bashrc", ".profile"):
        shutil.copyfile(Path("/etc/skel", name), root / "root" / name)
    (root / "var/log/sandbox.log").write_text(
        "".join(f"cloud-init's module {name} is left out: {why}\n" for name, why in LEFT_OUT.items())
    )
    _write_etc(etc, spec, package, cgroup_parent)
    _write_programs(usr)
    for name, text in seed(spec).items():
        file = root / "var/lib/cloud/seed/nocloud" / name
        file.write_text(text)
        # user_data holds the host key
        file.chmod(0o600)
    (disk / "meminfo").write_text(meminfo(Path("/proc/meminfo").read_text(), spec.memory_mb))


def seed(spec: MachineSpec) -> dict[str, str]:
    """Return the files of cloud-init's NoCloud source, by name: what a server is told of itself."""
    metadata: dict[str, Any] = {
        # another number is another server for cloud-init, which then does all of it again
        "instance-id": str(spec.server_id),
        "local-hostname": spec.name,
        "public-keys": list(spec.authorized_keys),
    }
    return {"meta-data": yaml.safe_dump(metadata), "user-data": spec.user_data}


def cloud_config(packaged: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Hetzner's images and the sandbox configure beside Debian's ``cloud.cfg``, ``packaged``."""
    stages = ("cloud_init_modules", "cloud_config_modules", "cloud_final_modules")
    config: dict[str, Any] = {
        stage: [module for module in packaged[stage] if _module_name(module) not in LEFT_OUT]
        for stage in stages
    }
    return config | {
        # A server at Hetzner is root's, and has no other account at first.
        "disable_root": False,
        # Debian's en_US.UTF-8 is not made on every machine.
        "locale": "C.UTF-8",
        # They would go to a system log, which does not run.
        "ssh": {"emit_keys_to_console": False},
        "users": ["root"],
        "datasource_list": ["NoCloud"],
        # Seeds are looked for on the machine's disks otherwise.
        "datasource": {"NoCloud": {"fs_label": None}},
        # The server has its addresses before it boots.
        "network": {"config": "disabled"},
    }


def meminfo(real: str, memory_mb: int) -> str:
    """Return ``/proc/meminfo`` of a machine with less memory: no figure in it is larger than that."""
    limit = memory_mb * 1024

    def smaller(match: re.Match[str]) -> str:
        return f"{match[1]}{min(int(match[2]), limit):>{len(match[2])}} kB"

    without_swap = re.sub(r"^(Swap\w+:\s+)\d+ kB$", r"\g<1>0 kB", real, flags=re.MULTILINE)
    return re.sub(
        r"^((?:Mem|Active|Inactive|Cached|Buffers)\w*:\s+)(\d+) kB$",
        smaller,
        without_swap,
        flags=re.MULTILINE,
    )


def accounts(passwd: str, group: str) -> dict[str, str]:
    """Return ``passwd``, ``shadow``, ``group`` and ``gshadow`` of a new machine, by name.

    The system's own accounts are kept, people's are not; nobody has a password.
    """
    kept = [line for line in passwd.splitlines() if _is_systems(line)]
    names = {line.split(":")[0] for line in kept}
    groups = []
    for line in group.splitlines():
        if _is_systems(line):
            name, password, number, members = line.split(":")
            inside = ",".join(member for member in members.split(",") if member in names)
            groups.append(f"{name}:{password}:{number}:{inside}")
    shadow = [f"{line.split(':')[0]}:*:19000:0:99999:7:::" for line in kept]
    gshadow = [f"{line.split(':')[0]}:*::{line.split(':')[3]}" for line in groups]
    files = {"passwd": kept, "shadow": shadow, "group": groups, "gshadow": gshadow}
    return {name: "\n".join(lines) + "\n" for name, lines in files.items()}


def _is_systems(line: str) -> bool:
    fields = line.split(":")
    numbered = len(fields) > 3 and fields[2].isdigit()  # noqa: PLR2004 - NIS lines have fewer fields
    return numbered and (int(fields[2]) < _FIRST_PERSON or int(fields[2]) == _NOBODY)


def _module_name(module: str | Sequence[Any]) -> str:
    return module if isinstance(module, str) else str(module[0])


def _write_etc(etc: Path, spec: MachineSpec, package: Path, cgroup_parent: str) -> None:
    packaged = yaml.safe_load((package / "etc/cloud/cloud.cfg").read_text())
    files = {
        **accounts(Path("/etc/passwd").read_text(), Path("/etc/group").read_text()),
        "subuid": "",
        "subgid": "",
        "hostname": f"{spec.name}\n",
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {spec.name}\n::1 localhost ip6-localhost ip6-loopback\n",
        "resolv.conf": "# a server in the sandbox has no name server\n",
        "fstab": "",
        "machine-id": f"{secrets.token_hex(16)}\n",
        "motd": f"{spec.name}: {spec.image} in the sandbox. What is not done here: /var/log/sandbox.log\n",
        "sandbox/cgroup_parent": f"{cgroup_parent}\n",
        "cloud/cloud.cfg.d/90_sandbox.cfg": json.dumps(cloud_config(packaged), indent=1) + "\n",
    }
    for folder in _OWN_FOLDERS:
        _make_opaque(etc, etc / folder)
    shutil.copytree(package / "etc/cloud", etc / "cloud", dirs_exist_ok=True)
    shutil.copyfile("/usr/share/openssh/sshd_config", etc / "ssh/sshd_config")
    (etc / "ssh/sshd_config.d").mkdir()
    for name in ("ssh_config", "moduli"):
        if Path("/etc/ssh", name).exists():
            shutil.copyfile(Path("/etc/ssh", name), etc / "ssh" / name)
    for name, text in files.items():
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        (etc / name).write_text(text)
    for name in ("shadow", "gshadow"):
        os.chown(etc / name, 0, _SHADOW)
        (etc / name).chmod(0o640)


def _make_opaque(etc: Path, folder: Path) -> None:
    """Make a folder of an overlay's upper layer that hides the one of the same name below it."""
    folder.mkdir(parents=True, exist_ok=True)
    # The kernel's Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
    os.setxattr(folder, "trusted.overlay.opaque", b"y")
    for path in (folder, *folder.parents):
        if path.is_relative_to(etc) and (below := Path("/etc", path.relative_to(etc))).is_dir():
            path.chmod(stat.S_IMODE(below.stat().st_mode))


def _write_programs(usr: Path) -> None:
    inside = usr.parent / _INSIDE
    code = inside / "sandbox/machines/guest"
    code.mkdir(parents=True)
    for file in sorted(_GUEST.glob("*.py")):
        shutil.copyfile(file, code / file.name)
    (inside / "real").mkdir()
    shutil.copy("/usr/sbin/sysctl", inside / "real/sysctl")
    for module, names in _STAND_INS.items():
        for name in names:
            _write_program(usr.parent / name, module)


def _write_program(path: Path, module: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/bin/sh\nexport PYTHONPATH=/{_INSIDE}\n"
        f'exec /usr/bin/python3 -sB -m sandbox.machines.guest.{module} "${{0##*/}}" "$@"\n'
    )
    path.chmod(0o755)
