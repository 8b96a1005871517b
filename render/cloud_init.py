"""What a new server makes of itself at its first boot: cloud-init's user data.

It is for Debian 12 and Ubuntu 22.04 and newer: only modules and keys that
cloud-init 22.4 has (https://docs.cloud-init.io/en/22.4.2/topics/modules.html).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ssh.keys import parse_public_key, public_key

# https://docs.hetzner.cloud/reference/cloud#servers-create-a-server, user_data
LIMIT = 32 * 1024
# What the project is made for: IPv6 with the sender's address, and networks that pick their own subnets.
LEAST_ENGINE = 29

# The key that https://download.docker.com/linux/debian/gpg gives, and /linux/ubuntu/gpg as well; its
# fingerprint is 9DC858229FC7DD38854AE2D88D81803C0EBFCD88 (https://docs.docker.com/engine/install/ubuntu/).
DOCKER_KEY = Path(__file__).with_name("docker_release.asc")
_DOCKER_KEY_ON_SERVER = "/etc/apt/keyrings/docker.asc"

_DAEMON = {
    # On Docker's default bridge, made at random once (RFC 4193, section 3.2): images are built there.
    "ipv6": True,
    "fixed-cidr-v6": "fd5e:a81c:27d4:1::/64",
    # Containers go on while the engine is updated.
    "live-restore": True,
    # Logs that are rotated, which json-file's are not: https://docs.docker.com/engine/logging/drivers/local/
    "log-driver": "local",
    "log-opts": {"max-size": "20m", "max-file": "5"},
}

_SSHD = """\
# Keys only, and no host key but the one that clients have pinned.
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
HostKey /etc/ssh/ssh_host_ed25519_key
X11Forwarding no
# Docker's provider opens dozens of sessions at once, over one connection or over many: the defaults,
# 10 sessions and 10:30:100 logins under way, refuse some.
MaxSessions 200
MaxStartups 100:30:200
"""

_SYSCTL = """\
# quic-go, Caddy's HTTP/3, asks for buffers of 7 MiB: https://github.com/quic-go/quic-go/wiki/UDP-Buffer-Sizes
net.core.rmem_max = 7500000
net.core.wmem_max = 7500000
# Every client that asks for its address is an entry, for each address family. A server with 2 GB would
# have 65536. An entry is some 320 bytes: https://docs.kernel.org/networking/nf_conntrack-sysctl.html
net.netfilter.nf_conntrack_max = 262144
# An exchange by STUN is two packets; 30 seconds is three times as many entries.
net.netfilter.nf_conntrack_udp_timeout = 10
# What RFC 4787 recommends (REQ-5): HTTP/3 may be silent that long.
net.netfilter.nf_conntrack_udp_timeout_stream = 300
"""

_UPGRADES = """\
// Debian's and Ubuntu's security updates, daily. Docker's own packages are left as they are, and
// nothing restarts the server: a new kernel waits for who restarts it.
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
APT::Periodic::AutocleanInterval "7";
Unattended-Upgrade::Automatic-Reboot "false";
Unattended-Upgrade::Remove-Unused-Kernel-Packages "true";
"""

_CONTAINERS_RULES = "/etc/derp-relays/containers.nft"
_CONTAINERS = """\
# The metadata service gives the server's user data, which holds its SSH host key, to all that asks from
# this server. Containers need nothing of it. The table is this file's own; Docker's are left alone.
table inet derp-relays
delete table inet derp-relays
table inet derp-relays {
    chain forward {
        type filter hook forward priority filter - 10; policy accept;
        ip daddr 169.254.169.254 counter reject
    }
}
"""
_ENGINE_UNIT = f"""\
# Before any container runs, at every start.
[Service]
ExecStartPre=/usr/sbin/nft -f {_CONTAINERS_RULES}
"""

# One script, which runs at the end; what fails in it is an error of cloud-init's.
_COMMANDS = [
    "set -eu",
    f"nft -f {_CONTAINERS_RULES}",
    "systemctl start docker",
    # By now Docker has loaded nf_conntrack, without which the kernel does not know some of the names.
    "sysctl --load /etc/sysctl.d/60-derp-relays.conf",
    # An image's own sshd_config may have a line before ours, and the first counts. The folder is not
    # there yet where systemd starts sshd at the first connection.
    """\
mkdir -p /run/sshd
if ! sshd -T | grep -qix 'passwordauthentication no'; then
    echo 'derp-relays: this image lets users in by password, whatever is in sshd_config.d' >&2
    exit 1
fi
""",
    # A package that is missing is an error already, of the module that should have installed it.
    f"""\
engine=$(dpkg-query --show --showformat '${{Version}}' docker-ce 2>/dev/null || true)
if [ -n "$engine" ] && dpkg --compare-versions "$engine" lt 5:{LEAST_ENGINE}; then
    echo "derp-relays: Docker Engine $engine was installed; {LEAST_ENGINE} is the least that works" >&2
    exit 1
fi
""",
]

_HEADER = """\
#cloud-config
# A DERP relay's server. It holds one secret, the SSH host key: who reads this can pretend to be the server.
"""


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it stands."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def cloud_init(
    *, host_private_key: str, host_public_key: str, deploy_public_keys: Sequence[str], image: str
) -> str:
    """Return the user data of a server that is ready for the relay when it is done.

    ``host_private_key`` is the ed25519 key that the server will show, and
    ``host_public_key`` its public half, which is pinned; ``deploy_public_keys``
    may log in as root. ``image`` is a name such as ``debian-13`` or
    ``ubuntu-24.04``, by which Docker's package source is chosen.

    Raises ``ValueError`` if the keys are no pair or of another type, if none may
    log in, if the image is neither Debian's nor Ubuntu's, or if the text is
    longer than Hetzner takes.
    """
    host_public = parse_public_key(host_public_key)
    if not host_public.startswith("ssh-ed25519 "):
        raise ValueError(f"the host key is of type {host_public.split(' ')[0]}, not ssh-ed25519")
    if public_key(host_private_key) != host_public:
        raise ValueError("the public host key is not the private one's: nobody could log in")
    if not deploy_public_keys:
        raise ValueError("there is no key that may log in")
    distribution = image.partition("-")[0]
    if distribution not in ("debian", "ubuntu"):
        raise ValueError(f"{image!r} is no image of Debian or Ubuntu")
    config = {
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": host_private_key.strip() + "\n",
            "ed25519_public": host_public,
        },
        "ssh_pwauth": False,
        "disable_root": False,
        "users": [
            {
                "name": "root",
                "lock_passwd": True,
                "ssh_authorized_keys": [parse_public_key(key) for key in deploy_public_keys],
            }
        ],
        "write_files": list(_files()),
        # In bytes. Without a limit, a server with little memory gets as much again as its memory.
        "swap": {"filename": "/swapfile", "size": "auto", "maxsize": 2 * 1024**3},
        "apt": {
            "preserve_sources_list": True,
            "conf": 'Acquire::Retries "5";\nDPkg::Lock::Timeout "300";\n',
            "sources": {
                "docker.list": {
                    "source": f"deb [signed-by={_DOCKER_KEY_ON_SERVER}]"
                    f" https://download.docker.com/linux/{distribution} $RELEASE stable"
                }
            },
        },
        "package_update": True,
        "packages": [
            "nftables",
            "unattended-upgrades",
            "docker-ce",
            "docker-ce-cli",
            "containerd.io",
        ],
        "runcmd": _COMMANDS,
    }
    # One line for each: YAML's own folding would break long ones.
    body = yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=LIMIT, allow_unicode=False)
    text = _HEADER + body
    if len(text.encode()) > LIMIT:
        raise ValueError(f"the user data is {len(text.encode())} bytes long, and Hetzner takes {LIMIT}")
    return text


def _files() -> list[dict[str, Any]]:
    contents = {
        "/etc/ssh/sshd_config.d/10-derp-relays.conf": _SSHD,
        "/etc/docker/daemon.json": json.dumps(_DAEMON, indent=2) + "\n",
        "/etc/systemd/system/docker.service.d/10-derp-relays.conf": _ENGINE_UNIT,
        _CONTAINERS_RULES: _CONTAINERS,
        # Before Docker loads it, so that the names below are known when a restarted server sets them.
        "/etc/modules-load.d/derp-relays.conf": "nf_conntrack\n",
        "/etc/sysctl.d/60-derp-relays.conf": _SYSCTL,
        "/etc/apt/apt.conf.d/52derp-relays": _UPGRADES,
        _DOCKER_KEY_ON_SERVER: DOCKER_KEY.read_text(),
    }
    return [
        {"path": path, "content": content, "owner": "root:root", "permissions": "0644"}
        for path, content in contents.items()
    ]
