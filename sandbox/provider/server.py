"""The gRPC service that the Pulumi engine talks to."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2, empty_pb2
from pulumi.runtime.proto import (
    engine_pb2,
    engine_pb2_grpc,
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)

from .check import Failure, check, check_provider, made_up_name
from .diff import Change, diff
from .errors import OperationError, PartlyCreatedError, RefusedError
from .package import Connection, Package, ResourceType
from .schema import package_schema
from .state import (
    created,
    imported_inputs,
    known_before_create,
    meta,
    planned,
    refreshed_inputs,
    tidy,
    updated,
)
from .values import UNKNOWN, NotAPlainValueError, from_struct, to_struct

_log = logging.getLogger(__name__)

_THREADS = 64
"""Calls served at once; more than the engine starts by itself (``--parallel``, 4 x the processors)."""

_Response = TypeVar("_Response")


def _guarded(
    method: Callable[[Any, Any, Any], _Response],
) -> Callable[[Any, Any, grpc.ServicerContext], _Response]:
    """Turn what goes wrong in a call into a gRPC error with the message alone."""

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> _Response:
        try:
            return method(self, request, context)
        except (RefusedError, OperationError, NotAPlainValueError) as error:
            # UNKNOWN is what Go's providers answer with plain errors, and what the engine shows as is
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
            raise AssertionError("abort raises") from error

    return call


@dataclass(frozen=True)
class _Configured:
    arguments: Mapping[str, Any]
    connection: Connection


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """
    Serves the resource types of one package.

    Calls do not tell which provider resource they belong to. The engine starts the real plugin once
    for each provider resource and each of its configurations; to a plugin that it attaches to it makes
    a gRPC connection of its own instead (``NewProvider`` in pulumi, sdk/go/common/resource/plugin/
    provider_plugin.go). So what Configure was given holds for the caller's connection.
    """

    def __init__(self, package: Package) -> None:
        """Start without a connection: Configure makes it."""
        self._package = package
        self._lock = threading.Lock()
        self._configured: dict[str, _Configured] = {}
        self._engine: str | None = None
        self._announced_to: set[str] = set()

    def close(self) -> None:
        """Let go of all connections; calls under way end."""
        with self._lock:
            configured, self._configured = self._configured, {}
        for each in configured.values():
            each.connection.cancelled.set()
            each.connection.close()

    # -- life of the plugin

    def Handshake(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Take the engine's address; say what this provider can take."""
        self._engine = request.engine_address
        return provider_pb2.ProviderHandshakeResponse(
            accept_secrets=False,
            accept_resources=False,
            accept_outputs=False,
            supports_autonaming_configuration=True,
        )

    def Attach(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:  # noqa: N802, ARG002
        """Take the engine's address."""
        self._engine = request.address
        return empty_pb2.Empty()

    def GetPluginInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Answer as the version that is stood in for."""
        return plugin_pb2.PluginInfo(version=self._package.version)

    def GetSchema(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Answer with the schema of what is carried."""
        schemas = [each.schema for each in self._package.resources.values()]
        return provider_pb2.GetSchemaResponse(
            schema=json.dumps(package_schema(self._package.name, self._package.version, schemas))
        )

    def Cancel(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:  # noqa: N802, ARG002
        """End the waiting of calls that are under way."""
        with self._lock:
            configured = self._configured.get(context.peer())
        if configured is not None:
            configured.connection.cancelled.set()
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Refuse: there are no functions."""
        context.abort(
            grpc.StatusCode.UNKNOWN,
            f"the stand-in for the {self._package.name} plugin has no functions such as {request.tok}; "
            f"install the real plugin with {self._package.real_plugin}",
        )

    # -- configuration

    @_guarded
    def CheckConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Check the arguments of the provider resource."""
        given = self._decoded(from_struct(request.news))
        failures = check_provider(given, self._package, resource_name=_name(request))
        return provider_pb2.CheckResponse(
            inputs=request.news,
            failures=_reported(failures),
        )

    @_guarded
    def DiffConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Compare provider arguments: none of them replaces what the provider has made."""
        old, new = from_struct(request.olds), from_struct(request.news)
        changes: dict[str, Any] = {}
        kinds = provider_pb2.PropertyDiff
        for name in self._package.provider_arguments:
            before, after = old.get(name), new.get(name)
            if after in (before, UNKNOWN):
                continue
            kind = kinds.ADD if before is None else kinds.DELETE if after is None else kinds.UPDATE
            changes[name] = provider_pb2.PropertyDiff(kind=kind, inputDiff=True)
        response = provider_pb2.DiffResponse
        return response(
            changes=(response.DIFF_SOME if changes else response.DIFF_NONE),
            diffs=sorted(changes),
            detailedDiff=changes,
            hasDetailedDiff=True,
        )

    @_guarded
    def Configure(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Make the connection that the arguments name, for the caller's calls from now on."""
        given = from_struct(request.args)
        for name in self._package.provider_arguments:
            variable = request.variables.get(f"{self._package.name}:config:{name}")
            if given.get(name) is None and variable is not None:
                given[name] = variable
        arguments = self._decoded(given)
        failures = check_provider(arguments, self._package, resource_name="provider")
        if failures:
            raise RefusedError(" ".join(each.reason for each in failures))
        with self._lock:
            # a run configures the same several times; nobody tells when a connection is not used any more
            configured = next(
                (
                    each
                    for each in self._configured.values()
                    if each.arguments == arguments and not each.connection.cancelled.is_set()
                ),
                None,
            ) or _Configured(arguments, self._package.connect(arguments))
            self._configured[context.peer()] = configured
        configured.connection.check()
        self._announce()
        return provider_pb2.ConfigureResponse(
            acceptSecrets=False, supportsPreview=True, supports_autonaming_configuration=True
        )

    def _announce(self) -> None:
        with self._lock:
            if not self._engine or self._engine in self._announced_to:
                return
            self._announced_to.add(self._engine)
        with grpc.insecure_channel(self._engine) as channel:
            try:
                engine_pb2_grpc.EngineStub(channel).Log(
                    engine_pb2.LogRequest(
                        severity=engine_pb2.INFO,
                        message=f"{self._package.name}: {self._package.announcement}",
                    ),
                    timeout=5,
                )
            except grpc.RpcError as error:
                _log.warning("the engine did not take the announcement: %s", error)

    # -- resources

    @_guarded
    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Check a resource's arguments and fill in defaults."""
        token = self._type(request).schema.token
        try:
            news = from_struct(request.news)
        except NotAPlainValueError as error:
            return provider_pb2.CheckResponse(
                inputs=request.news, failures=[provider_pb2.CheckFailure(reason=str(error))]
            )
        proposed = request.autonaming.proposed_name if request.HasField("autonaming") else None
        # a name that is in the state already is kept, even one that the program gave earlier
        kept = from_struct(request.olds).get("name")
        inputs, failures = check(
            news,
            self._package,
            token,
            resource_name=_name(request),
            make_name=lambda: kept or made_up_name(_name(request), request.randomSeed, proposed),
        )
        return provider_pb2.CheckResponse(
            inputs=to_struct(inputs),
            failures=_reported(failures),
        )

    @_guarded
    def Diff(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Compare a resource's state with new inputs."""
        kind = self._type(request)
        found = diff(
            from_struct(request.olds),
            from_struct(request.news),
            kind.schema,
            kind.behaviour,
            list(request.ignoreChanges),
        )
        response = provider_pb2.DiffResponse
        return response(
            changes=response.DIFF_SOME if found.changes else response.DIFF_NONE,
            replaces=found.replaced_properties,
            stables=found.stable,
            deleteBeforeReplace=found.delete_before_replace,
            diffs=found.changed_properties,
            detailedDiff={}
            if kind.behaviour.framework
            else {
                path: provider_pb2.PropertyDiff(kind=_diff_kind(change, replaces=path in found.replacing))
                for path, change in found.changes.items()
            },
            hasDetailedDiff=not kind.behaviour.framework,
        )

    @_guarded
    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Make a resource; a preview touches nothing."""
        kind = self._type(request)
        schema, behaviour = kind.schema, kind.behaviour
        inputs = from_struct(request.properties)
        if request.preview:
            state = known_before_create(planned(inputs, schema, behaviour, computed=UNKNOWN))
            return provider_pb2.CreateResponse(properties=to_struct(state))
        try:
            state = _create(self._connection(context), inputs, kind)
        except PartlyCreatedError as error:
            # what is filled in stays unread, which makes the next update mend or replace the resource
            state = planned(inputs, schema, behaviour) | {"id": error.identifier, "__meta": meta(behaviour)}
            _abort_partly(context, error.identifier, state, f"creating {request.urn}: {error.reason}")
        return provider_pb2.CreateResponse(id=state["id"], properties=to_struct(state))

    @_guarded
    def Read(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Read a resource's real state, for a refresh or, where there is no old state, for an import."""
        kind = self._type(request)
        schema, behaviour = kind.schema, kind.behaviour
        prior = from_struct(request.properties)
        inputs = from_struct(request.inputs)
        found = kind.read(self._connection(context), request.id, prior)
        if found is None:
            return provider_pb2.ReadResponse()
        if prior:
            state = {**prior, **found}
            known = refreshed_inputs(inputs, state, schema, behaviour)
        else:
            state = planned({}, schema, behaviour) | dict.fromkeys(behaviour.defaults) | found
            state = {name: value for name, value in state.items() if "." not in name}
            known = imported_inputs(state, schema, behaviour)
        state = tidy(state, behaviour) | {"__meta": meta(behaviour)}
        return provider_pb2.ReadResponse(id=found["id"], properties=to_struct(state), inputs=to_struct(known))

    @_guarded
    def Update(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Change a resource in place."""
        kind = self._type(request)
        schema, behaviour = kind.schema, kind.behaviour
        old, inputs = from_struct(request.olds), from_struct(request.news)
        ignored = list(request.ignoreChanges)
        found = diff(old, inputs, schema, behaviour, ignored)
        if found.replacing:
            raise RefusedError(
                f"{request.urn} cannot be updated in place: {', '.join(found.replaced_properties)} changes"
            )
        state = updated(old, inputs, schema, behaviour, ignored)
        if request.preview:
            unknown = {name for name in behaviour.unknown_on_update if inputs.get(name) is None}
            state |= dict.fromkeys(unknown if found.changes else (), UNKNOWN)
        else:
            state |= kind.update(self._connection(context), request.id, old, state)
        state = tidy(state, behaviour) | {"id": request.id, "__meta": meta(behaviour)}
        return provider_pb2.UpdateResponse(properties=to_struct(state))

    @_guarded
    def Delete(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:  # noqa: N802
        """Remove a resource; one that is gone already is no error."""
        kind = self._type(request)
        kind.delete(self._connection(context), request.id, from_struct(request.properties))
        return empty_pb2.Empty()

    def _connection(self, context: grpc.ServicerContext) -> Connection:
        """Return the connection of the caller's configuration."""
        with self._lock:
            found = self._configured.get(context.peer())
            if found is None and self._configured:
                # gRPC closes a connection that was idle for half an hour and makes another one
                # (https://pkg.go.dev/google.golang.org/grpc#WithIdleTimeout)
                *others, found = self._configured.values()
                if any(each.arguments != found.arguments for each in others):
                    raise RefusedError(
                        f"the stand-in for the {self._package.name} plugin cannot tell any more which "
                        "provider resource this call is for; run Pulumi again"
                    )
        if found is None:
            raise RefusedError(f"the {self._package.name} provider was not configured")
        return found.connection

    def _type(self, request: Any) -> ResourceType:
        """Return the request's resource type. Raises `RefusedError` for types that are not carried."""
        # urn:pulumi:STACK::PROJECT::PARENT$TYPE::NAME, https://www.pulumi.com/docs/iac/concepts/resources/names/
        token = str(request.urn).split("::")[2].split("$")[-1]
        if token not in self._package.resources:
            carried = ", ".join(sorted(each.rsplit(":", 1)[1] for each in self._package.resources))
            raise RefusedError(
                f"unrecognized resource type {token}: the stand-in for the {self._package.name} plugin "
                f"carries {carried}; install the real plugin with {self._package.real_plugin}"
            )
        return self._package.resources[token]

    def _decoded(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Decode the provider arguments that the engine hands over as JSON text: all but texts."""
        decoded = dict(arguments)
        for name, each in self._package.provider_arguments.items():
            value = decoded.get(name)
            if each.type.kind != "string" and isinstance(value, str) and value != UNKNOWN:
                try:
                    decoded[name] = json.loads(value)
                except json.JSONDecodeError:
                    continue  # check_provider then says what type is wanted
        return decoded


def _reported(failures: Iterable[Failure]) -> list[Any]:
    """
    Turn failures into messages. Like the real plugin this leaves ``property`` empty: the engine would
    print the value with it, which may be a secret. The reason names the path.
    """
    return [provider_pb2.CheckFailure(reason=each.reason) for each in failures]


def _name(request: Any) -> str:
    return str(request.urn).rsplit("::", 1)[-1] or "provider"


def _diff_kind(change: Change, *, replaces: bool) -> Any:
    return provider_pb2.PropertyDiff.Kind.Value(f"{change.value}_REPLACE" if replaces else change.value)


def _create(connection: Connection, inputs: Mapping[str, Any], kind: ResourceType) -> dict[str, Any]:
    creation = kind.create(connection, inputs)
    prior = planned(inputs, kind.schema, kind.behaviour)
    try:
        observed = kind.read(connection, creation.identifier, prior)
    except OperationError as error:
        raise PartlyCreatedError(creation.identifier, str(error)) from error
    if observed is None:
        raise OperationError(f"{kind.schema.token} {creation.identifier} was made, but is gone already")
    state = created(inputs, {**observed, **creation.properties}, kind.schema, kind.behaviour)
    return state | {"__meta": meta(kind.behaviour)}


def _abort_partly(
    context: grpc.ServicerContext, identifier: str, state: Mapping[str, Any], reason: str
) -> None:
    """End a call with the detail by which the engine keeps a resource that exists but is not in order."""
    detail = any_pb2.Any()
    detail.Pack(_init_failed(identifier, state, reason))
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=reason, details=[detail])
    # https://grpc.io/docs/guides/error/ (richer error model)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNKNOWN, reason)


def _init_failed(identifier: str, state: Mapping[str, Any], reason: str) -> Any:
    """Return Pulumi's ``ErrorResourceInitFailed``."""
    return provider_pb2.ErrorResourceInitFailed(id=identifier, properties=to_struct(state), reasons=[reason])


class Serving:
    """A provider that is being served; `port` tells where."""

    def __init__(self, package: Package, address: str = "127.0.0.1:0") -> None:
        """
        Start serving on ``address`` (port 0: one that is free).

        Raises `RuntimeError` if the address cannot be had.
        """
        limit = 400 * 1024 * 1024  # as the engine's own (pulumi, sdk/go/common/util/rpcutil/serve.go)
        self._provider = Provider(package)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=_THREADS),
            options=[("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)],
        )
        provider_pb2_grpc.add_ResourceProviderServicer_to_server(self._provider, self._server)
        self.port: int = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self, seconds: float) -> None:
        """Take no more calls, give those under way ``seconds`` to end, and let go of all connections."""
        self._server.stop(seconds).wait(seconds)
        self._provider.close()
