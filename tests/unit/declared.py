"""What the program declares for given settings: resources with their inputs and options, no engine."""

from __future__ import annotations

import asyncio
import json
import runpy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pulumi
import yaml
from pulumi.runtime import get_root_resource, mocks, rpc, set_all_config
from pulumi.runtime.mocks import MockMonitor, MockResourceArgs
from pulumi.runtime.stack import Stack

from settings import PROJECT
from settings.base import PROJECT_FOLDER

MINIMAL: Mapping[str, Any] = {
    "domain": "derp.example.com",
    "region": {"id": 901, "code": "nbg", "name": "Nuremberg"},
}


@dataclass(frozen=True)
class Declared:
    """One resource as the engine would be told of it: ``request`` has the options that mocks do not see."""

    type: str
    name: str
    inputs: dict[str, Any]
    request: Any


class Declarations:
    """All that a program declared, by type and logical name, with its stack outputs."""

    def __init__(self) -> None:
        self.resources: list[Declared] = []
        self.outputs: dict[str, Any] = {}

    def one(self, type_suffix: str, name: str) -> Declared:
        found = [r for r in self.resources if r.type.endswith(type_suffix) and r.name == name]
        assert len(found) == 1, f"{len(found)} resources {type_suffix} {name} in {self.names()}"
        return found[0]

    def of(self, type_suffix: str) -> list[Declared]:
        return [r for r in self.resources if r.type.endswith(type_suffix)]

    def names(self) -> list[str]:
        return [f"{r.type} {r.name}" for r in self.resources]


# What only the providers know, by resource and name.
_COMPUTED = {
    "PrimaryIp ipv4": {"ipAddress": "203.0.113.9"},
    "PrimaryIp ipv6": {"ipAddress": "2001:db8:9::", "ipNetwork": "2001:db8:9::/64"},
    "RemoteImage derper-built": {"imageId": "sha256:derper"},
    "RemoteImage derper": {"imageId": "sha256:derper"},
    "RemoteImage caddy": {"imageId": "sha256:caddy"},
    "RemoteImage caddy-built": {"imageId": "sha256:caddy"},
    "RemoteImage deliver-built": {"imageId": "sha256:deliver"},
}


class _Mocks(mocks.Mocks):
    """Inputs are outputs, plus what only the provider knows; Hetzner's ids are numbers."""

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        kind = args.typ.rpartition(":")[2]
        number = sum(args.name.encode()) + len(kind)
        id_ = str(number) if args.typ.startswith("hcloud:") else f"{args.name}-id"
        return id_, {**args.inputs, **_COMPUTED.get(f"{kind} {args.name}", {})}

    def call(self, args: mocks.MockCallArgs) -> Any:
        raise AssertionError(f"the program asks Docker at preview: {args.token}")


class _Recorder(MockMonitor):
    def __init__(self, declarations: Declarations) -> None:
        super().__init__(_Mocks())
        self.declarations = declarations

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - the engine's own name
        inputs = rpc.deserialize_properties(request.object)
        self.declarations.resources.append(Declared(request.type, request.name, inputs, request))
        return super().RegisterResource(request)  # type: ignore[no-untyped-call]


def _known(output: Any) -> Any:
    return asyncio.run(output.future()) if isinstance(output, pulumi.Output) else output


def declare(values: Mapping[str, Any], stack: str = "test") -> Declarations:
    """Run the program for the settings ``values``, by their keys without the project's name.

    Keys of other packages are whole, such as ``hcloud:token``.
    """
    declarations = Declarations()
    config = {
        key if ":" in key else f"{PROJECT}:{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
    }

    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def run() -> None:
        set_all_config(config)
        # A preview: no server is waited for.
        mocks.set_mocks(_Mocks(), project=PROJECT, stack=stack, preview=True, monitor=_Recorder(declarations))
        runpy.run_path(str(PROJECT_FOLDER / "__main__.py"), run_name="__main__")
        root = get_root_resource()
        assert isinstance(root, Stack)
        declarations.outputs = dict(root.outputs)

    # What the program leaves for its provider is not for the working tree.
    with tempfile.TemporaryDirectory() as folder, mock.patch("delivery.content.PROJECT_FOLDER", Path(folder)):
        run()
    declarations.outputs = {name: _known(value) for name, value in declarations.outputs.items()}
    return declarations


def declare_stack(stack: str) -> Declarations:
    """Run the program for a stack file of the project."""
    content = yaml.safe_load((PROJECT_FOLDER / "stacks" / f"Pulumi.{stack}.yaml").read_text())
    prefix = f"{PROJECT}:"
    values = {
        key.removeprefix(prefix): value for key, value in content["config"].items() if key.startswith(prefix)
    }
    return declare(values, stack)
