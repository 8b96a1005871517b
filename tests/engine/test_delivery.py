"""What Caddy serves follows the stack's file, while Caddy's container runs on."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from images import built_image
from images.recipe import host_goarch
from tests.checkout import STACK
from tests.docker_host import DockerHost
from tests.engine.program_stack import SETTINGS, Engine, engine_on

CADDY = "caddy-test"
UP = ("up", "--yes", "--skip-preview")
# of `caddy hash-password --plaintext hiccup`, with the documentation's own salt
HASH = "$2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG"


class Served(Engine):
    """A stack whose sites are asked for on its own host."""

    # whether a test has replaced a container, as it meant to
    replaced = False

    def get(self, name: str, path: str = "/", *options: str) -> str:
        """Return what curl gets, head and body; ``""`` where there is no such site."""
        done = self.checkout.host.run(
            [
                *["curl", "--silent", "--include", "--insecure", "--max-time", "10", *options],
                *["--resolve", f"{name}:443:127.0.0.1", f"https://{name}{path}"],
            ],
            timeout=30,
        )
        return done.stdout

    def container(self) -> Any:
        return self.docker.containers.get(CADDY)

    def in_container(self, path: str) -> dict[str, tarfile.TarInfo]:
        """Return what is under a folder of Caddy's container, by path below it."""
        chunks, _ = self.container().get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            return {member.name.partition("/")[2]: member for member in archive.getmembers()}

    def stored(self) -> set[str]:
        return {
            name.removeprefix(".files/")
            for name in self.in_container("/srv/.sites")
            if name.startswith(".files/")
        }

    def overwrite(self, text: str) -> None:
        """Overwrite the Caddyfile in place, as a person might."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            header = tarfile.TarInfo("Caddyfile")
            header.size = len(text)
            tar.addfile(header, io.BytesIO(text.encode()))
        self.container().put_archive("/etc/caddy", archive.getvalue())


@pytest.fixture(scope="module")
def stack(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with engine_on(host, tmp_path_factory.mktemp("delivery"), Served) as made:
        yield made


@pytest.fixture(autouse=True)
def untouched(stack: Served) -> Iterator[None]:
    """See that no test, whatever it delivers, replaces a container; and leave the stack without sites."""
    before = stack.ids()
    stack.replaced = False
    yield
    stack.write()
    stack.up()
    assert (stack.ids() == before) is not stack.replaced


def redirect(name: str, to: str) -> dict[str, Any]:
    return {"names": [name], "redirect": to}


def test_sites_come_change_and_go(stack: Served) -> None:
    stack.write(sites=[redirect("a.localhost", "https://one.example.com")])
    assert stack.preview() == {"Configuration configuration": "update"}
    stack.up()
    assert "location: https://one.example.com/" in stack.get("a.localhost")
    stack.write(
        sites=[
            redirect("a.localhost", "https://two.example.com"),
            redirect("b.localhost", "https://b.example.com"),
        ]
    )
    stack.up()
    assert "location: https://two.example.com/" in stack.get("a.localhost")
    assert "location: https://b.example.com/" in stack.get("b.localhost")
    stack.write(sites=[redirect("b.localhost", "https://b.example.com")])
    stack.up()
    assert stack.get("a.localhost") == ""
    stack.container().restart()
    wait_for_site(stack, "b.localhost")
    assert stack.get("a.localhost") == ""
    stack.unchanged()


def wait_for_site(stack: Served, name: str) -> None:
    deadline = time.monotonic() + 30
    while not stack.get(name):
        assert time.monotonic() < deadline, stack.container().logs(tail=20)
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("snippet", "told"),
    [
        ("respnd hello", "unrecognized directive: respnd"),
        ("reverse_proxy app:80 {\n\tno_such_option\n}", "unrecognized subdirective no_such_option"),
        # What only provisioning finds: it is taken for good by the adapter.
        ("tls /nowhere/cert.pem /nowhere/key.pem", "/nowhere/cert.pem"),
    ],
    ids=["directive", "arguments", "files"],
)
def test_what_caddy_refuses_fails_in_caddys_words_and_the_old_goes_on(
    stack: Served, snippet: str, told: str
) -> None:
    good = redirect("a.localhost", "https://one.example.com")
    stack.write(sites=[good])
    stack.up()
    before = stack.in_container("/etc/caddy/Caddyfile")[""].size
    stack.write(sites=[{"names": ["bad.localhost"], "snippet": snippet}])
    for _ in range(2):
        said = stack.run(*UP, fails=True)
        assert "Caddy refuses the configuration, and goes on serving the one before: " in said
        assert told in said
        assert "Traceback" not in said.partition("Diagnostics:")[2].partition("pulumi:pulumi:Stack")[0]
        assert "location: https://one.example.com/" in stack.get("a.localhost")
        assert stack.get("bad.localhost") == ""
    assert stack.in_container("/etc/caddy/Caddyfile")[""].size == before
    stack.container().restart()
    wait_for_site(stack, "a.localhost")


def test_a_refusal_tells_whose_line_it_is(stack: Served) -> None:
    stack.write(
        sites=[
            redirect("a.localhost", "https://one.example.com"),
            {"names": ["bad.localhost"], "snippet": "respnd hello"},
        ]
    )
    said = stack.run(*UP, fails=True)
    assert "in the block of bad.localhost: respnd hello" in said


@pytest.fixture
def www(stack: Served) -> Path:
    folder = stack.checkout.folder / "www"
    subprocess.run(["rm", "-rf", folder], check=True)
    (folder / "css").mkdir(parents=True)
    (folder / "index.html").write_text("<h1>first</h1>")
    (folder / "css" / "a.css").write_text("a { }")
    (folder / "latest").symlink_to("css/a.css")
    return folder


def folder_site(name: str = "www.localhost") -> dict[str, Any]:
    return {"names": [name], "folder": "./www"}


def test_a_folder_is_copied_and_what_has_not_changed_is_not_sent_again(stack: Served, www: Path) -> None:
    stack.write(sites=[folder_site()])
    stack.up()
    assert "<h1>first</h1>" in stack.get("www.localhost")
    assert "a { }" in stack.get("www.localhost", "/css/a.css")
    assert "a { }" in stack.get("www.localhost", "/latest")
    stack.unchanged()
    before = stack.stored()
    age = (
        stack.get("www.localhost", "/css/a.css", "--head")
        .lower()
        .partition("last-modified:")[2]
        .splitlines()[0]
    )

    (www / "index.html").write_text("<h1>second</h1>")
    assert stack.preview() == {"Configuration configuration": "update"}
    stack.up()
    assert "<h1>second</h1>" in stack.get("www.localhost")
    assert len(before) == len(stack.stored()) == 2
    assert len(before & stack.stored()) == 1
    assert age in stack.get("www.localhost", "/css/a.css", "--head").lower()

    # the same files under another name: nothing is stored twice
    stack.write(sites=[folder_site(), folder_site("copy.localhost")])
    stack.up()
    assert "<h1>second</h1>" in stack.get("copy.localhost")
    assert len(stack.stored()) == 2

    stack.write(sites=[folder_site("copy.localhost")])
    stack.up()
    assert stack.get("www.localhost") == ""
    assert not any(name.startswith("www.localhost") for name in stack.in_container("/srv/.sites"))


def test_a_folder_without_a_site_leaves_nothing_behind(stack: Served, www: Path) -> None:  # noqa: ARG001
    stack.write(sites=[folder_site()])
    stack.up()
    stack.write()
    stack.up()
    assert not [name for name in stack.in_container("/srv") if name]


def test_what_an_interrupted_copy_left_is_used_if_it_is_whole(stack: Served, www: Path) -> None:
    whole, short = b"x" * 1000, b"y" * 1000
    (www / "whole").write_bytes(whole)
    (www / "short").write_bytes(short)
    sums = {
        name: subprocess.run(["sha256sum", www / name], capture_output=True, text=True, check=True).stdout[
            :64
        ]
        for name in ("whole", "short")
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in (("whole", whole), ("short", short[:500])):
            header = tarfile.TarInfo(f".sites/.incoming/{sums[name]}")
            header.size, header.mtime = len(content), 1_000_000
            tar.addfile(header, io.BytesIO(content))
    stack.container().put_archive("/srv", archive.getvalue())
    stack.write(sites=[folder_site()])
    stack.up()
    assert stack.get("www.localhost", "/whole").endswith(whole.decode())
    assert stack.get("www.localhost", "/short").endswith(short.decode())
    # not sent again: its time is that of the first copy
    assert "1970" in stack.get("www.localhost", "/whole", "--head")
    assert "1970" not in stack.get("www.localhost", "/short", "--head")


def test_a_folder_that_vanishes_is_told_and_the_site_goes_on(stack: Served, www: Path) -> None:
    stack.write(sites=[folder_site()])
    stack.up()
    subprocess.run(["rm", "-r", www], check=True)
    said = stack.run(*UP, fails=True)
    assert f"derp-relays:sites[0].folder: {www} is no folder" in said
    assert "nothing was changed" in said
    assert "<h1>first</h1>" in stack.get("www.localhost")


def test_what_caddy_has_taken_is_served_though_it_could_not_be_put_in_place(stack: Served, www: Path) -> None:  # noqa: ARG001
    """The moment between the two, such as a disk that is full by then: nothing that is served may go."""
    volume = Path(stack.docker.volumes.get("engine-test_caddy_etc").attrs["Mountpoint"])
    (volume / "Caddyfile").rename(volume / "aside")
    # no file can be renamed to a folder
    (volume / "Caddyfile").mkdir()
    stack.write(sites=[folder_site()])
    said = stack.run(*UP, fails=True)
    assert "the configuration could not be delivered: rename" in said
    assert "<h1>first</h1>" in stack.get("www.localhost")
    (volume / "Caddyfile").rmdir()
    (volume / "aside").rename(volume / "Caddyfile")
    stack.up()
    assert "<h1>first</h1>" in stack.get("www.localhost")
    stack.unchanged()


def test_an_image_that_was_pruned_is_told_and_comes_back_with_a_refresh(stack: Served) -> None:
    stack.docker.images.remove(built_image("deliver", host_goarch()).name)
    stack.write(sites=[redirect("a.localhost", "https://one.example.com")])
    assert "is not on the host any more (docker image prune?)" in stack.run(*UP, fails=True)
    stack.run("refresh", "--yes", "--skip-preview")
    stack.up()
    assert "location: https://one.example.com/" in stack.get("a.localhost")


def test_a_large_folder_goes_through(stack: Served, www: Path) -> None:
    """Some thousand files, and one that is larger than what is sent at once."""
    for number in range(3000):
        part = www / f"part{number % 40}"
        part.mkdir(exist_ok=True)
        (part / f"{number}.txt").write_text(f"file {number}")
    (www / "large.bin").write_bytes(os.urandom(1 << 20) * 64)
    size = len(stack.run("stack", "export"))
    stack.write(sites=[folder_site()])
    stack.up()
    assert stack.get("www.localhost", "/part7/2967.txt").endswith("file 2967")
    head = stack.get("www.localhost", "/large.bin", "--head")
    assert f"content-length: {64 << 20}" in head.lower()
    assert len(stack.run("stack", "export")) < size + 1000


def test_a_caddyfile_changed_by_hand_is_found_by_a_refresh_and_mended(stack: Served) -> None:
    stack.write(sites=[redirect("a.localhost", "https://one.example.com")])
    stack.up()
    stack.overwrite("by-hand.localhost {\n\ttls internal\n\trespond hello\n}\n")
    stack.container().exec_run(["caddy", "reload", "--config", "/etc/caddy/Caddyfile"])
    assert "hello" in stack.get("by-hand.localhost")
    stack.unchanged()
    stack.run("refresh", "--yes", "--skip-preview")
    assert stack.preview() == {"Configuration configuration": "update"}
    stack.up()
    assert stack.get("by-hand.localhost") == ""
    assert "location: https://one.example.com/" in stack.get("a.localhost")


def test_a_caddy_that_cannot_start_is_given_what_it_can_start_with(stack: Served) -> None:
    stack.write(sites=[redirect("a.localhost", "https://one.example.com")])
    stack.up()
    stack.overwrite("by-hand.localhost {\n\tno_such_directive\n}\n")
    stack.container().restart()
    stack.write(sites=[redirect("a.localhost", "https://two.example.com")])
    stack.up()
    assert "location: https://two.example.com/" in stack.get("a.localhost")


def test_a_caddy_that_starts_with_neither_keeps_what_it_had(stack: Served) -> None:
    broken = "by-hand.localhost {\n\tno_such_directive\n}\n"
    stack.overwrite(broken)
    stack.container().restart()
    stack.write(sites=[{"names": ["bad.localhost"], "snippet": "respnd hello"}])
    said = stack.run(*UP, fails=True)
    assert "Caddy does not answer" in said
    assert "unrecognized directive: respnd" in said
    chunks, _ = stack.container().get_archive("/etc/caddy/Caddyfile")
    assert broken in b"".join(chunks).decode()


def test_a_stopped_caddy_is_started(stack: Served) -> None:
    stack.container().stop(timeout=5)
    stack.write(sites=[redirect("a.localhost", "https://one.example.com")])
    stack.up()
    assert "location: https://one.example.com/" in stack.get("a.localhost")


def test_secrets_work_and_are_in_neither_state_nor_output_nor_caddyfile(stack: Served) -> None:
    secret = "correct-horse-battery-staple"  # noqa: S105 - of this test
    stack.write(
        sites=[
            {
                "names": ["a.localhost"],
                "snippet": "respond hello",
                "basicAuth": {"alice": HASH},
                "headers": {"X-Token": "{secret.token}"},
            }
        ]
    )
    stack.run("config", "set", "--secret", "--path", "derp-relays:siteSecrets.token", secret)
    try:
        said = stack.run(*UP, "--diff") + stack.run("preview", "--diff")
        assert stack.get("a.localhost").split()[1] == "401"
        answer = stack.get("a.localhost", "/", "--user", "alice:hiccup")
        assert f"x-token: {secret}" in answer
        assert "hello" in answer
        state = stack.run("stack", "export")
        chunks, _ = stack.container().get_archive("/etc/caddy/Caddyfile")
        rendered = b"".join(chunks).decode()
        logs = stack.container().logs().decode()
        kept = "".join(path.read_text() for path in (stack.checkout.folder / ".relayctl").rglob("*.json"))
        for where in (said, state, rendered, logs, kept):
            assert secret not in where
            assert base64.b64encode(secret.encode()).decode() not in where
        for where in (said, state, logs):
            assert HASH not in where
        modes = {
            name: member.mode
            for name, member in stack.in_container("/etc/caddy/.secrets").items()
            if member.isfile()
        }
        assert {mode & 0o777 for mode in modes.values()} == {0o600}
    finally:
        stack.run("config", "rm", "--path", "derp-relays:siteSecrets")


def test_a_renewed_certificate_is_delivered(stack: Served, tmp_path: Path) -> None:
    def renew(serial: int) -> None:
        subprocess.run(
            [
                *[
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                ],
                *["-subj", "/CN=derp.localhost", "-addext", "subjectAltName=DNS:derp.localhost"],
                *["-days", "2", "-set_serial", str(serial)],
                *["-keyout", str(tmp_path / "privkey.pem"), "-out", str(tmp_path / "fullchain.pem")],
            ],
            check=True,
            capture_output=True,
        )

    show = "openssl s_client -connect 127.0.0.1:443 -servername derp.localhost </dev/null 2>/dev/null"
    show += " | openssl x509 -noout -serial"

    def shown() -> str:
        return stack.checkout.host.run(["sh", "-c", show], timeout=30).stdout.strip()

    renew(0x11)
    stack.write(certificate={"source": "files", "folder": str(tmp_path)})
    stack.up()
    assert shown() == "serial=11"
    renew(0x22)
    assert stack.preview() == {"Configuration configuration": "update"}
    stack.up()
    assert shown() == "serial=22"
    stack.unchanged()
    assert "PRIVATE KEY" not in stack.run("stack", "export")
    keys = [name for name in stack.in_container("/etc/caddy/.certificates") if name.endswith("privkey.pem")]
    assert len(keys) == 1


def test_sites_cost_no_resources_and_hardly_any_state(stack: Served) -> None:
    told = {}
    for count in (1, 100, 1000):
        stack.write(sites=[redirect(f"s{n}.localhost", f"https://s{n}.example.com") for n in range(count)])
        stack.up()
        state = stack.run("stack", "export")
        told[count] = (len(json.loads(state)["deployment"]["resources"]), len(state))
        assert f"location: https://s{count - 1}.example.com/" in stack.get(f"s{count - 1}.localhost")
    assert told[1][0] == told[100][0] == told[1000][0]
    # a name and a digest for each, in inputs and outputs
    assert (told[1000][1] - told[1][1]) / 999 < 200


@pytest.fixture(scope="module")
def images(stack: Served) -> dict[str, str]:
    """Return images of the same programs by other ids: one that runs, and one that ends at once."""
    made = {}
    for program in ("caddy", "derper"):
        current = stack.docker.containers.get(f"{program}-test").image.id
        for kind, line in (("good", "LABEL try=good"), ("bad", 'ENTRYPOINT ["/usr/local/bin/healthcheck"]')):
            name = f"test/{program}:{kind}"
            stack.docker.images.build(
                fileobj=io.BytesIO(f"FROM {current}\n{line}\n".encode()), tag=name, rm=True
            )
            made[f"{program} {kind}"] = name
    return made


@pytest.mark.parametrize("program", ["caddy", "derper"])
def test_a_new_image_that_does_not_run_never_takes_the_old_ones_place(
    stack: Served, images: dict[str, str], program: str
) -> None:
    site = redirect("a.localhost", "https://one.example.com")
    stack.write(sites=[site])
    stack.up()
    before = stack.ids()
    stack.write(sites=[site], **{program: {"image": images[f"{program} bad"], "allowUnpinned": True}})
    said = stack.run(*UP, fails=True)
    assert f"{images[f'{program} bad']} was tried beside the container {program}-test, which goes on" in said
    assert "usage: healthcheck URL" in said
    assert stack.ids() == before
    assert "location: https://one.example.com/" in stack.get("a.localhost")


@pytest.mark.parametrize("program", ["caddy", "derper"])
def test_a_new_image_that_runs_takes_the_old_ones_place(
    stack: Served, images: dict[str, str], program: str
) -> None:
    site = redirect("a.localhost", "https://one.example.com")
    stack.write(sites=[site])
    stack.up()
    stack.write(sites=[site], **{program: {"image": images[f"{program} good"], "allowUnpinned": True}})
    stack.up()
    wanted = stack.docker.images.get(images[f"{program} good"]).id
    assert stack.docker.containers.get(f"{program}-test").image.id == wanted
    assert "location: https://one.example.com/" in stack.get("a.localhost")
    stack.unchanged()
    stack.write(sites=[site])
    stack.up()
    stack.replaced = True


def test_nothing_runs_beside_the_containers(stack: Served) -> None:
    wanted = {"label": f"derp-relays.stack={STACK}"}
    assert {str(c.name) for c in stack.docker.containers.list(all=True, filters=wanted)} == {
        CADDY,
        SETTINGS["derper"]["containerName"],
    }
