"""Servers as namespaces: how they boot, who reaches them, and that nothing of them is left."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
import yaml

from sandbox.machines import FirewallRule, MachineError, MachineSpec
from sandbox.machines.namespaces import NamespaceMachines
from sandbox.machines.network import Network, Outside
from ssh.keys import new_private_key, public_key
from tests.requirements import require

EVERYWHERE = ("0.0.0.0/0", "::/0")
SSH = FirewallRule("tcp", "22", EVERYWHERE)

# Listens on the ports that are given, on both families, and sends back what it gets.
_LISTEN = """
import socketserver, sys, socket, threading
class Tcp(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6; allow_reuse_address = True
class Udp(socketserver.UDPServer):
    address_family = socket.AF_INET6
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple): self.request[1].sendto(self.request[0], self.client_address)
        else: self.request.sendall(self.request.recv(100))
servers = [Tcp(("::", int(p)), Echo) for p in sys.argv[1].split(",")]
servers += [Udp(("::", int(p)), Echo) for p in sys.argv[2].split(",")]
for server in servers: threading.Thread(target=server.serve_forever).start()
print("listening", flush=True)
"""

# Asks an address and says "answers", "refuses" or "is silent".
_ASK = """
import os, socket, struct, sys
protocol, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
six = ":" in address
family = socket.AF_INET6 if six else socket.AF_INET
kinds = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0),
         "icmp": (socket.SOCK_RAW, socket.getprotobyname("ipv6-icmp" if six else "icmp"))}
asked = socket.socket(family, *kinds[protocol])
asked.settimeout(0.7)
try:
    asked.connect((address, port))
    if protocol == "icmp":
        body = struct.pack("!BBHHH", 128 if six else 8, 0, 0, os.getpid() & 0xffff, 1)
        total = sum(struct.unpack("!4H", body))
        total = ~((total & 0xffff) + (total >> 16)) & 0xffff
        asked.send(body[:2] + struct.pack("!H", total) + body[4:])
        while asked.recv(200)[0 if six else 20] != (129 if six else 0): pass
    else:
        asked.send(b"hello")
        assert asked.recv(100)
    print("answers")
except (TimeoutError, BlockingIOError):
    print("is silent")
except ConnectionRefusedError:
    print("refuses")
"""


@dataclasses.dataclass(frozen=True)
class Keys:
    host: str
    deploy: str
    folder: Path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    made = Keys(new_private_key("host"), new_private_key("deploy"), folder)
    (folder / "deploy").touch(mode=0o600)
    (folder / "deploy").write_text(made.deploy)
    return made


@contextlib.contextmanager
def made(folder: Path) -> Iterator[NamespaceMachines]:
    require(os.geteuid() == 0, "servers that are namespaces need root", "sudo make test")
    try:
        machines = NamespaceMachines(folder, name="test")
    except MachineError as error:
        require(None, f"servers cannot be made: {error}", "apt-get install openssh-server nftables docker.io")
        raise
    try:
        yield machines
    finally:
        machines.close()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[NamespaceMachines]:
    with made(tmp_path / "machines") as one:
        yield one


def specification(machines: NamespaceMachines, keys: Keys, server_id: int = 1, **more: object) -> MachineSpec:
    networks = IPv6Network(machines.ipv6_network).subnets(new_prefix=64)
    config = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": keys.host, "ed25519_public": public_key(keys.host)},
        "write_files": [
            {
                "path": "/etc/docker/daemon.json",
                "content": json.dumps({"ipv6": True, "fixed-cidr-v6": "fd00:dead:beef::/64"}),
            }
        ],
        **more,
    }
    return MachineSpec(
        server_id=server_id,
        name=f"server-{server_id}",
        ipv4=str(IPv4Network(machines.ipv4_network)[9 + server_id]),
        ipv6_network=str(next(itertools.islice(networks, server_id, None))),
        user_data="#cloud-config\n" + yaml.safe_dump(config),
        authorized_keys=(public_key(keys.deploy),),
        image="debian-12",
        memory_mb=2048,
    )


def ipv6_of(spec: MachineSpec) -> str:
    assert spec.ipv6_network
    return str(IPv6Network(spec.ipv6_network)[1])


def ssh(
    keys: Keys, address: str | None, command: str, *, pinned: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command on a server, which must show the key that is ``pinned``, by default the right one."""
    known = keys.folder / "known_hosts"
    known.write_text(f"the-server {pinned or public_key(keys.host)}\n")
    options = {
        "HostKeyAlias": "the-server",
        "UserKnownHostsFile": str(known),
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": "5",
    }
    argv = ["ssh", "-F", "none", "-i", str(keys.folder / "deploy")]
    argv += [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    return subprocess.run(
        [*argv, f"root@{address}", command], capture_output=True, text=True, timeout=60, check=False
    )


def inside(machines: NamespaceMachines, server_id: int, *argv: str) -> str:
    done = subprocess.run(
        machines.command(server_id, argv), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def until_docker_answers(machines: NamespaceMachines, server_id: int) -> float:
    """Wait until cloud-init is done and Docker answers, and return the seconds that it took."""
    start = time.monotonic()
    inside(machines, server_id, "cloud-init", "status", "--wait")
    while time.monotonic() < start + 30:
        done = subprocess.run(
            machines.command(server_id, ["docker", "version"]), capture_output=True, check=False
        )
        if done.returncode == 0:
            return time.monotonic() - start
        time.sleep(0.1)
    raise AssertionError(inside(machines, server_id, "tail", "-n", "20", "/var/log/docker.log"))


@contextlib.contextmanager
def listening(machines: NamespaceMachines, server_id: int, tcp: str, udp: str) -> Iterator[None]:
    argv = ["python3", "-c", _LISTEN, tcp, udp]
    with subprocess.Popen(machines.command(server_id, argv), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        try:
            yield
        finally:
            # what is in the server ends with its entrance alone
            inside(machines, server_id, "pkill", "-f", "socketserver")


def ask(place: Outside, protocol: str, address: str | None, port: int = 0) -> str:
    done = place.run([sys.executable, "-c", _ASK, protocol, str(address), str(port)], timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def asked(place: Outside, spec: MachineSpec, protocol: str, port: int = 0) -> str:
    """Ask over both families, which must tell the same."""
    found = {ask(place, protocol, address, port) for address in (spec.ipv4, ipv6_of(spec))}
    assert len(found) == 1, found
    return found.pop()


def left_of(folder: Path, *networks: str) -> list[str]:
    """Return what there is of machines with disks in ``folder`` and addresses of ``networks``."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder) in (process / "mountinfo").read_text():
                left.append(f"mount seen by {process.name}")
            if str(folder) in (process / "cmdline").read_text():
                left.append((process / "cmdline").read_text())
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    for number in (network.split(".")[2] for network in networks):
        left += [path.name for path in Path("/run/netns").glob(f"dm{number}-*")]
        left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/dm{number}-*")]
        left += [link["ifname"] for link in links if link["ifname"] == f"dm{number}"]
    return left


def test_a_server_boots_as_its_user_data_says(machines: NamespaceMachines, keys: Keys) -> None:
    spec = specification(
        machines,
        keys,
        runcmd=[
            ["sh", "-c", "sysctl -w net.ipv4.tcp_keepalive_time=99 vm.swappiness=1"],
            ["touch", "/root/it-ran"],
        ],
        package_update=True,
        packages=["unattended-upgrades"],
    )
    swappiness = Path("/proc/sys/vm/swappiness").read_text()
    start = time.monotonic()
    machines.create(spec)
    answered = time.monotonic() - start

    # before cloud-init is done, over both families, with the host key from the user data and no other
    assert "server-1" in ssh(keys, spec.ipv4, "hostname").stdout
    assert "server-1" in ssh(keys, ipv6_of(spec), "hostname").stdout
    stranger = public_key(new_private_key("another"))
    refused = ssh(keys, spec.ipv4, "hostname", pinned=stranger)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr

    until_docker_answers(machines, 1)
    sys.stdout.write(f"SSH after {answered:.1f} s, Docker after {time.monotonic() - start:.1f} s\n")
    status = json.loads(ssh(keys, spec.ipv4, "cloud-init status --wait --format json").stdout)
    assert (status["status"], status["errors"]) == ("done", [])
    assert "DataSourceNoCloud" in status["detail"]

    assert ssh(keys, spec.ipv4, "test -e /root/it-ran").returncode == 0
    assert "99" in ssh(keys, spec.ipv4, "cat /proc/sys/net/ipv4/tcp_keepalive_time").stdout
    assert Path("/proc/sys/vm/swappiness").read_text() == swappiness
    log = ssh(keys, spec.ipv4, "cat /var/log/sandbox.log").stdout
    for said in (
        "vm.swappiness",
        "apt-get install unattended-upgrades: not done",
        "module mounts is left out",
    ):
        assert said in log

    info = json.loads(ssh(keys, spec.ipv4, "docker info --format '{{json .}}'").stdout)
    assert (info["Name"], info["MemTotal"]) == ("server-1", 2048 * 2**20)
    bridge = json.loads(ssh(keys, spec.ipv4, "docker network inspect bridge").stdout)[0]
    assert "fd00:dead:beef::/64" in str(bridge["IPAM"])
    # as Docker's own client reaches it over SSH
    assert ssh(keys, spec.ipv4, "docker system dial-stdio < /dev/null").returncode == 0


def test_a_server_is_another_machine(machines: NamespaceMachines, keys: Keys) -> None:
    """Nothing of this machine's people, keys and processes is seen in it, nor what it writes seen here."""
    spec = specification(machines, keys)
    machines.create(spec)
    people = [
        line
        for line in Path("/etc/passwd").read_text().splitlines()
        if 1000 <= int(line.split(":")[2]) < 60000
    ]
    assert not {person.split(":")[0] for person in people} & set(inside(machines, 1, "ls", "/home").split())
    own = inside(machines, 1, "cat", "/etc/shadow")
    assert {line.split(":")[1] for line in own.splitlines()} <= {"*", "!*"}
    host_keys = inside(machines, 1, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").splitlines()
    assert [line.split()[:2] for line in host_keys] == [public_key(keys.host).split()[:2]]
    assert inside(machines, 1, "cat", "/etc/machine-id") != Path("/etc/machine-id").read_text()
    assert str(os.getpid()) not in inside(machines, 1, "ls", "/proc").split()
    assert set(inside(machines, 1, "ls", "/sys/class/net").split()) <= {"lo", "eth0", "docker0"}
    for path in ("/etc/made-in-a-server", "/usr/bin/made-in-a-server", "/var/lib/made-in-a-server"):
        inside(machines, 1, "touch", path)
        assert not Path(path).exists()


def test_errors_of_cloud_init_are_told(machines: NamespaceMachines, keys: Keys) -> None:
    machines.create(specification(machines, keys, runcmd=["echo this goes wrong >&2; exit 7"]))
    done = subprocess.run(
        machines.command(1, ["cloud-init", "status", "--wait", "--format", "json"]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    status = json.loads(done.stdout)
    assert status["status"] == "error"
    assert "scripts_user" in str(status["errors"]).replace("-", "_")
    assert "this goes wrong" in inside(machines, 1, "cat", "/var/log/cloud-init-output.log")


def test_a_firewall_lets_in_what_it_says(machines: NamespaceMachines, keys: Keys) -> None:
    spec = specification(machines, keys)
    allowed = machines.outside(0)
    with allowed as one, machines.outside(1) as two:
        rules = [
            SSH,
            FirewallRule("tcp", "8000-8001", EVERYWHERE),
            FirewallRule("tcp", "8003", (f"{one.ipv4}/32", f"{one.ipv6}/128")),
            FirewallRule("udp", "3478", EVERYWHERE),
            FirewallRule("icmp", None, (f"{one.ipv4}/32", f"{one.ipv6}/128")),
        ]
        machines.set_firewall(spec.server_id, rules)
        machines.create(spec)
        with listening(machines, spec.server_id, "8000,8001,8002,8003", "3478,3479"):
            for port in (22, 8000, 8001):
                assert asked(two, spec, "tcp", port) == "answers", port
            assert asked(two, spec, "tcp", 8002) == "is silent"
            assert (asked(one, spec, "tcp", 8003), asked(two, spec, "tcp", 8003)) == ("answers", "is silent")
            assert asked(two, spec, "udp", 3478) == "answers"
            assert asked(two, spec, "udp", 3479) == "is silent"
            assert (asked(one, spec, "icmp"), asked(two, spec, "icmp")) == ("answers", "is silent")
            # what the server asks for is let in
            asks = ["python3", "-c", _ASK, "tcp", one.ipv4, "8005"]
            assert inside(machines, spec.server_id, *asks) == "refuses\n"

            machines.set_firewall(spec.server_id, [FirewallRule("tcp", "8002", EVERYWHERE)])
            assert (asked(two, spec, "tcp", 8002), asked(two, spec, "tcp", 8000)) == ("answers", "is silent")
            assert ssh(keys, spec.ipv4, "true").returncode == 255
            machines.set_firewall(spec.server_id, [])
            assert asked(one, spec, "tcp", 8002) == "is silent"
            machines.set_firewall(spec.server_id, None)
            assert (asked(two, spec, "tcp", 8003), asked(two, spec, "tcp", 8004)) == ("answers", "refuses")
            assert asked(two, spec, "icmp") == "answers"


def test_rules_that_are_none_change_nothing(machines: NamespaceMachines, keys: Keys) -> None:
    spec = specification(machines, keys)
    machines.set_firewall(spec.server_id, [SSH])
    with pytest.raises(MachineError, match="no port"):
        machines.set_firewall(spec.server_id, [FirewallRule("tcp", "web", EVERYWHERE)])
    machines.create(spec)
    with machines.outside() as place, listening(machines, spec.server_id, "8000", "8000"):
        assert asked(place, spec, "tcp", 22) == "answers"
        assert asked(place, spec, "tcp", 8000) == "is silent"


def system_image() -> bytes:
    """Return a file system that has the server's own programs when its ``/usr`` is mounted."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("bin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(link)
    return packed.getvalue()


def run_container(machines: NamespaceMachines, server_id: int) -> None:
    """Publish port 80 of a container that listens on 80, and on 81 over UDP, as port 8080 and 8081."""
    imported = subprocess.run(
        machines.command(server_id, ["docker", "import", "-", "system"]),
        input=system_image(),
        capture_output=True,
        check=False,
    )
    assert imported.returncode == 0, imported.stderr
    run = ["docker", "run", "--detach", "--name=listens", "--restart=always", "--volume=/usr:/usr:ro"]
    run += ["--publish=8080:80", "--publish=8081:81/udp", "system", "python3", "-c", _LISTEN, "80", "81"]
    inside(machines, server_id, *run)


def test_a_published_port_is_behind_the_firewall(machines: NamespaceMachines, keys: Keys) -> None:
    spec = specification(machines, keys)
    machines.set_firewall(spec.server_id, [SSH, FirewallRule("tcp", "80", EVERYWHERE)])
    machines.create(spec)
    until_docker_answers(machines, spec.server_id)
    run_container(machines, spec.server_id)
    with machines.outside() as place:
        # it is the port of the server that counts, not the container's
        assert asked(place, spec, "tcp", 8080) == "is silent"
        assert asked(place, spec, "udp", 8081) == "is silent"
        rules = [FirewallRule("tcp", "8080", EVERYWHERE), FirewallRule("udp", "8081", EVERYWHERE)]
        machines.set_firewall(spec.server_id, rules)
        assert asked(place, spec, "tcp", 8080) == "answers"
        assert asked(place, spec, "udp", 8081) == "answers"
        inside(machines, spec.server_id, "systemctl", "restart", "docker")
        assert asked(place, spec, "tcp", 8080) == "answers"


def test_the_disk_outlives_power_and_the_firewall_too(machines: NamespaceMachines, keys: Keys) -> None:
    spec = specification(machines, keys, runcmd=["echo once >> /root/times"])
    machines.set_firewall(
        spec.server_id,
        [SSH, FirewallRule("tcp", "8080", EVERYWHERE), FirewallRule("udp", "8081", EVERYWHERE)],
    )
    machines.create(spec)
    until_docker_answers(machines, spec.server_id)
    run_container(machines, spec.server_id)
    ssh(keys, spec.ipv4, "echo kept > /root/note; touch /run/not-kept")

    machines.power_off(spec.server_id)
    machines.power_off(spec.server_id)
    assert ssh(keys, spec.ipv4, "true").returncode == 255
    with pytest.raises(MachineError, match="is off"):
        machines.command(spec.server_id, ["true"])

    machines.power_on(spec.server_id)
    machines.power_on(spec.server_id)
    # the same host key
    note = ssh(keys, spec.ipv4, "cat /root/note")
    assert note.stdout == "kept\n", note.stderr
    assert ssh(keys, spec.ipv4, "test -e /run/not-kept").returncode == 1
    until_docker_answers(machines, spec.server_id)
    assert ssh(keys, spec.ipv4, "cat /root/times").stdout == "once\n"
    with machines.outside() as place:
        assert asked(place, spec, "tcp", 8080) == "answers"
        assert asked(place, spec, "tcp", 8000) == "is silent"


def test_servers_are_apart_and_nothing_is_left(tmp_path: Path, keys: Keys) -> None:
    with made(tmp_path / "here") as here, made(tmp_path / "there") as there:
        assert here.ipv4_network != there.ipv4_network
        assert here.ipv6_network != there.ipv6_network
        specs = [specification(here, keys, number) for number in (1, 2)]
        for spec in specs:
            here.create(spec)
        elsewhere = specification(there, keys, 1)
        there.create(elsewhere)
        for spec in specs:
            until_docker_answers(here, spec.server_id)
        run_container(here, 1)
        assert inside(here, 2, "docker", "ps", "--quiet") == ""
        # one network: servers reach one another, but not those of another
        asks = ["python3", "-c", _ASK, "tcp"]
        assert inside(here, 1, *asks, str(specs[1].ipv4), "22") == "answers\n"
        assert inside(here, 1, *asks, ipv6_of(specs[1]), "22") == "answers\n"
        unreachable = subprocess.run(
            here.command(1, [*asks, str(elsewhere.ipv4), "22"]), capture_output=True, text=True, check=False
        )
        assert "Network is unreachable" in unreachable.stderr

        here.delete(1)
        here.delete(1)
        assert not (tmp_path / "here" / "1").exists()
        with pytest.raises(MachineError, match="no server 1"):
            here.power_on(1)
        # a new server with the old one's address is reached at once
        here.create(specification(here, keys, 1))
        assert ssh(keys, specs[0].ipv4, "docker ps --all --quiet").stdout == ""
        with pytest.raises(MachineError, match="already"):
            here.create(specs[0])
    assert left_of(tmp_path, here.ipv4_network, there.ipv4_network) == []
    assert not (tmp_path / "here").exists()


def test_a_server_that_does_not_boot_is_not_there(
    machines: NamespaceMachines, keys: Keys, tmp_path: Path
) -> None:
    spec = specification(
        machines,
        keys,
        bootcmd=["mkdir -p /etc/ssh/sshd_config.d; echo Nonsense > /etc/ssh/sshd_config.d/x.conf"],
    )
    with pytest.raises(MachineError, match="Nonsense"):
        machines.create(spec)
    assert not (tmp_path / "machines" / "1").exists()
    with pytest.raises(MachineError, match="is not of the network"):
        machines.create(dataclasses.replace(spec, ipv4="192.0.2.77"))
    machines.create(specification(machines, keys))


def test_what_a_killed_process_left_is_removed_and_its_disks_go_on(tmp_path: Path, keys: Keys) -> None:
    require(os.geteuid() == 0, "servers that are namespaces need root", "sudo make test")
    folder = tmp_path / "machines"
    program = f"""
import sys, pathlib
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.engine.test_machines import *
keys = Keys({keys.host!r}, {keys.deploy!r}, pathlib.Path({str(keys.folder)!r}))
machines = NamespaceMachines(pathlib.Path({str(folder)!r}), name="test")
machines.create(specification(machines, keys))
until_docker_answers(machines, 1)
run_container(machines, 1)
print(machines.ipv4_network, flush=True)
sys.stdin.read()
"""
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        network = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    assert left_of(folder, network)
    # whoever comes next removes it, with another folder too
    Network("other").close()
    assert left_of(folder, network) == []
    with made(folder) as machines:
        assert machines.ipv4_network == network
        machines.power_on(1)
        until_docker_answers(machines, 1)
        assert inside(machines, 1, "docker", "ps", "--format", "{{.Names}}") == "listens\n"
        machines.shut_down()
        assert left_of(folder, network) == []
        assert (folder / "1").exists()
        with made(folder) as again:
            again.power_on(1)
