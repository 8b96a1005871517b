"""The parts of the sandbox's servers that are text: firewall, disk, and the stand-ins that run inside."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sandbox.machines import FirewallRule, MachineError, MachineSpec
from sandbox.machines.cloud_init_package import _packages, _release
from sandbox.machines.disk import LEFT_OUT, accounts, cloud_config, meminfo, seed
from sandbox.machines.firewall import ruleset
from sandbox.machines.guest import apt_get, services, sysctl, systemctl


def inbound(*rules: FirewallRule) -> list[str]:
    """Return what the rules let in, a line each."""
    lines = [line.strip() for line in ruleset("eth0", rules).splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("icmpv6 type"))
    return lines[start + 1 : lines.index("drop")]


@pytest.mark.parametrize(
    ("rule", "lines"),
    [
        (
            FirewallRule("tcp", "80", ("0.0.0.0/0", "::/0")),
            ["meta nfproto ipv4 tcp dport 80 accept", "meta nfproto ipv6 tcp dport 80 accept"],
        ),
        (FirewallRule("udp", "80-85", ("10.0.0.0/8",)), ["ip saddr { 10.0.0.0/8 } udp dport 80-85 accept"]),
        (FirewallRule("tcp", "7-7", ("::/0",)), ["meta nfproto ipv6 tcp dport 7 accept"]),
        (FirewallRule("tcp", "any", ("0.0.0.0/0",)), ["meta nfproto ipv4 meta l4proto tcp accept"]),
        (
            FirewallRule("icmp", None, ("192.0.2.1/32", "2001:db8::/32")),
            [
                "ip saddr { 192.0.2.1/32 } meta l4proto icmp accept",
                "ip6 saddr { 2001:db8::/32 } meta l4proto icmpv6 accept",
            ],
        ),
        (FirewallRule("gre", None, ("::/0",)), ["meta nfproto ipv6 meta l4proto gre accept"]),
        # nft refuses sets whose networks overlap
        (
            FirewallRule("tcp", "22", ("10.1.0.0/16", "10.0.0.0/8", "192.0.2.0/25", "192.0.2.128/25")),
            ["ip saddr { 10.0.0.0/8, 192.0.2.0/24 } tcp dport 22 accept"],
        ),
        (
            FirewallRule("tcp", "22", ("10.1.0.0/16", "0.0.0.0/0")),
            ["meta nfproto ipv4 tcp dport 22 accept"],
        ),
        (FirewallRule("tcp", "22", ()), []),
    ],
)
def test_a_rule_lets_in_what_it_says(rule: FirewallRule, lines: list[str]) -> None:
    assert inbound(rule) == lines


def test_a_firewall_without_rules_lets_nothing_in_and_none_everything() -> None:
    assert inbound() == []
    assert "drop" in ruleset("eth0", [])
    assert "drop" not in ruleset("eth0", None)
    # both replace what was there before
    for text in (ruleset("eth0", []), ruleset("eth0", None)):
        assert "delete table inet cloud_firewall" in text


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (FirewallRule("tcp", None, ("::/0",)), "is no port"),
        (FirewallRule("tcp", "0", ("::/0",)), "from 1 to 65535"),
        (FirewallRule("tcp", "90-80", ("::/0",)), "lower one first"),
        (FirewallRule("udp", "65536", ("::/0",)), "from 1 to 65535"),
        (FirewallRule("icmp", "80", ("::/0",)), "has no port"),
        (FirewallRule("sctp", "80", ("::/0",)), "there is not"),
        (FirewallRule("tcp", "80", ("everywhere",)), "no source"),
        (FirewallRule("tcp", "80", ("10.0.0.1/8",)), "no source"),
        (FirewallRule("tcp", "80 accept; drop", ("::/0",)), "is no port"),
    ],
)
def test_a_rule_that_is_none_is_refused(rule: FirewallRule, said: str) -> None:
    with pytest.raises(MachineError, match=said):
        ruleset("eth0", [rule])


def test_a_server_is_told_who_it_is() -> None:
    spec = MachineSpec(
        17, "derp: #1", "198.18.1.10", None, "#cloud-config\n", ("ssh-ed25519 AAAA",), "debian-12", 2048
    )
    files = seed(spec)
    assert files["user-data"] == "#cloud-config\n"
    assert yaml.safe_load(files["meta-data"]) == {
        "instance-id": "17",
        "local-hostname": "derp: #1",
        "public-keys": ["ssh-ed25519 AAAA"],
    }


def test_modules_that_reach_for_the_machines_disks_are_left_out() -> None:
    packaged = {
        "cloud_init_modules": ["bootcmd", "growpart", ["mounts", "always"], "ssh"],
        "cloud_config_modules": ["grub-dpkg", "runcmd"],
        "cloud_final_modules": ["scripts-user"],
    }
    config = cloud_config(packaged)
    assert config["cloud_init_modules"] == ["bootcmd", "ssh"]
    assert config["cloud_config_modules"] == ["runcmd"]
    assert config["cloud_final_modules"] == ["scripts-user"]
    assert {"growpart", "mounts", "grub-dpkg"} <= set(LEFT_OUT)


def test_a_server_has_the_memory_that_was_ordered() -> None:
    real = "MemTotal:       24684084 kB\nMemFree:          500000 kB\nSwapTotal:       2097148 kB\n"
    ours = "MemTotal:        2097152 kB\nMemFree:          500000 kB\nSwapTotal:       0 kB\n"
    assert meminfo(f"{real}HugePages_Total:       0\n", 2048) == f"{ours}HugePages_Total:       0\n"


def test_peoples_accounts_stay_on_their_machine() -> None:
    people = (
        "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000:Ann:/home/ann:/bin/bash\n"
        "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n+::::::\n"
    )
    group = "root:x:0:\nsudo:x:27:ann,root\nann:x:1000:\ndocker:x:112:ann\n"
    files = accounts(people, group)
    assert "ann" not in "".join(files.values())
    assert [line.split(":")[0] for line in files["passwd"].splitlines()] == ["root", "nobody"]
    assert files["group"] == "root:x:0:\nsudo:x:27:root\ndocker:x:112:\n"
    assert files["gshadow"] == "root:*::\nsudo:*::root\ndocker:*::\n"
    assert {line.split(":")[1] for line in files["shadow"].splitlines()} == {"*"}


def test_a_drop_in_is_read() -> None:
    text = "# why\n[Service]\nExecStartPre=/bin/false\nExecStartPre=\nLimitNOFILE=5\n"
    text += "ExecStartPre=-/usr/sbin/nft -f \\\n 'a b'\n"
    assert services.drop_in(text) == ([(["/usr/sbin/nft", "-f", "a b"], True)], ["LimitNOFILE=5"])
    assert services.drop_in("[Service]\nExecStartPre=/x --y\n") == ([(["/x", "--y"], False)], [])


@pytest.mark.parametrize(
    ("version", "configured", "added"),
    [
        ("Docker version 20.10.24+dfsg1, build 297e128", {}, {"--experimental", "--ip6tables"}),
        ("Docker version 26.1.5, build a72d7cd", {"ip6tables": False}, {"--experimental"}),
        ("Docker version 29.0.0, build 3d4129b", {}, set()),
        ("Docker version 20.10.24, build 297e128", None, set()),
    ],
)
def test_an_old_engine_is_told_to_do_ipv6(version: str, configured: object, added: set[str]) -> None:
    """Unless its own file says something about it: an option in both keeps it from starting."""
    assert {"--experimental", "--ip6tables"} & set(services.docker_options(version, configured)) == added


def test_what_cannot_be_set_in_a_server_is_no_mistake() -> None:
    errors = (
        'sysctl: permission denied on key "vm.swappiness"\n'
        'sysctl: setting key "net.core.rmem_max": Invalid argument\n'
        'sysctl: setting key "net.ipv4.tcp_rmem": Invalid argument\n'
        "sysctl: cannot stat /proc/sys/net/core/bpf_jit_enable: No such file or directory\n"
        "sysctl: cannot stat /proc/sys/kernel/no_such_key: No such file or directory\n"
    )
    own, limits = sysctl.judged(errors, lambda key: key != "net.core.rmem_max")
    assert [line.split(":")[1].split()[-1] for line in own] == [
        '"net.ipv4.tcp_rmem"',
        "/proc/sys/kernel/no_such_key",
    ]
    assert len(limits) == 3


def test_dockers_packages_are_had_from_dockers_source_alone(tmp_path: Path) -> None:
    key = tmp_path / "docker.asc"
    line = f"deb [arch=amd64 signed-by={key}] https://download.docker.com/linux/debian bookworm stable\n"
    fault = apt_get.source_fault
    assert "no source" in str(fault([]))
    assert "no source" in str(fault(["deb https://deb.debian.org/debian bookworm main\n", "# " + line]))
    assert "no key to trust" in str(fault(["deb https://download.docker.com/linux/debian bookworm stable\n"]))
    assert f"{key}, is not there" in str(fault([line]))
    key.write_text("key")
    assert fault([line]) is None


def test_apt_get_refuses_what_apt_get_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(services, "LOG", tmp_path / "log")
    monkeypatch.setattr(apt_get, "_INSTALLED", tmp_path / "lib" / "packages")
    monkeypatch.setattr(apt_get, "_SOURCES", tmp_path)
    assert (
        apt_get.main(["-o", "Dpkg::Options::=--force-confold", "--assume-yes", "install", "nftables=1.0.6-2"])
        == 0
    )
    assert apt_get.main(["install", "-t", "bookworm-backports", "curl/bookworm", "nftables"]) == 0
    assert (tmp_path / "lib" / "packages").read_text() == "nftables\ncurl\n"
    assert "apt-get install nftables: not done" in (tmp_path / "log").read_text()
    capsys.readouterr()
    assert apt_get.main(["install", "Not_A_Package"]) == 100
    assert apt_get.main(["instal", "curl"]) == 100
    assert apt_get.main(["install", "docker-ce"]) == 100
    assert "Unable to locate package docker-ce: no source" in capsys.readouterr().err


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have systemctl's records in a folder, with one unit that is known."""
    monkeypatch.setattr(services, "LOG", tmp_path / "log")
    monkeypatch.setattr(systemctl, "_STATES", tmp_path / "states")
    monkeypatch.setattr(systemctl, "_UNIT_FOLDERS", (tmp_path,))
    monkeypatch.setattr(systemctl, "_INSTALLED", tmp_path / "packages")
    (tmp_path / "cron.service").touch()
    return tmp_path


def test_systemctl_does_not_say_that_it_did_what_it_did_not(units: Path) -> None:
    assert systemctl.main("systemctl", ["daemon-reload"]) == 0
    assert systemctl.main("systemctl", ["restart", "cron"]) == 0
    assert "systemctl restart cron: not done" in (units / "log").read_text()
    assert systemctl.main("systemctl", ["is-active", "cron"]) == 3
    assert systemctl.main("systemctl", ["start", "no-such-unit"]) == 5
    assert systemctl.main("systemctl", ["start", "cron", "no-such-unit.service"]) == 5
    assert systemctl.main("systemctl", ["is-failed", "cron"]) == 1
    assert systemctl.main("systemctl", ["list-units"]) == 1
    assert systemctl.main("reboot", []) == 1
    assert systemctl.main("systemctl", ["poweroff"]) == 1
    (units / "packages").write_text("unattended-upgrades\n")
    assert systemctl.main("systemctl", ["enable", "--now", "unattended-upgrades.service"]) == 0


def test_systemctl_remembers_what_starts_with_the_server(
    units: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert systemctl.enabled("docker")
    assert systemctl.main("systemctl", ["disable", "docker.service"]) == 0
    assert not systemctl.enabled("docker")
    assert systemctl.main("systemctl", ["is-enabled", "--quiet", "docker"]) == 1
    assert capsys.readouterr().out == ""
    assert systemctl.main("systemctl", ["enable", "docker"]) == 0
    assert systemctl.main("systemctl", ["is-enabled", "docker"]) == 0
    assert capsys.readouterr().out == "enabled\n"
    assert systemctl.main("systemctl", ["mask", "ssh"]) == 0
    assert systemctl.main("systemctl", ["start", "sshd"]) == 1
    assert "ssh.service is masked" in (units / "log").read_text()


@pytest.mark.parametrize(
    ("verb", "running", "stopped"),
    [
        ("start", ["start"], ["start"]),
        ("restart", ["stop", "start"], ["stop", "start"]),
        ("try-restart", ["stop", "start"], []),
        ("reload", ["reload"], ["reload"]),
        ("reload-or-restart", ["reload"], ["start"]),
        ("try-reload-or-restart", ["reload"], []),
        ("reload-or-try-restart", ["reload"], []),
    ],
)
def test_a_verb_does_what_systemctl_says(verb: str, running: list[str], stopped: list[str]) -> None:
    assert [step.__name__ for step in systemctl._steps(verb, running=True)] == running
    assert [step.__name__ for step in systemctl._steps(verb, running=False)] == stopped


def test_what_is_unpacked_is_cloud_init_and_its_libraries() -> None:
    listing = (
        "cloud-init\n  Depends: python3-yaml\n |Depends: fdisk\n  Depends: <python3:any>\npython3-yaml\n"
        "python3-minimal\npython3-attr:any\n<python3-debconf>\nlibc6\npython3-yaml\n"
    )
    assert _packages(listing) == ["cloud-init", "python3-yaml"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('NAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n', "debian-12"),
        ("ID=debian\n", "debian"),
        ("", "unknown"),
    ],
)
def test_what_is_unpacked_belongs_to_one_release(text: str, name: str) -> None:
    assert _release(text) == name
