"""The gRPC service that the Pulumi engine talks to."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
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

from . import PLUGIN_VERSION, REAL_PLUGIN, container, image, network, volume
from .behaviour import Behaviour, behaviours
from .check import Failure, check, check_provider, made_up_name
from .container import PartlyCreatedError
from .daemon import Daemon, HostRefusedError, OperationError, resolve_host
from .diff import Change, diff
from .schema import ResourceSchema, package_schema, provider_arguments, resource_schemas
from .state import (
    created,
    imported_inputs,
    known_before_create,
    meta,
    planned,
    refreshed_inputs,
    updated,
)
from .values import UNKNOWN, NotAPlainValueError, from_struct, to_struct

_log = logging.getLogger(__name__)

_THREADS = 64
"""Calls served at once; more than the engine starts by itself (``--parallel``, 4 x the processors)."""

ANNOUNCEMENT = (
    "this is the stand-in for the pulumi-docker plugin: it serves this machine's Docker daemon only. "
    f"The real plugin comes with {REAL_PLUGIN}."
)

_JSON_CONFIG = ("registryAuth", "sshOpts", "disableDockerDaemonCheck")
"""Provider arguments that the engine hands over as JSON text."""

_Response = TypeVar("_Response")


class _RefusedError(Exception):
    """A call that cannot be served; the message goes to the user."""


def _guarded(
    method: Callable[[Any, Any, Any], _Response],
) -> Callable[[Any, Any, grpc.ServicerContext], _Response]:
    """Turn what goes wrong in a call into a gRPC error with the message alone."""

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> _Response:
        try:
            return method(self, request, context)
        except (_RefusedError, OperationError, HostRefusedError, NotAPlainValueError) as error:
            # UNKNOWN is what Go's providers answer with plain errors, and what the engine shows as is
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
            raise AssertionError("abort raises") from error

    return call


class DockerProvider(provider_pb2_grpc.ResourceProviderServicer):
    """Serves networks, volumes, images and containers of one local Docker daemon."""

    def __init__(self) -> None:
        """Start without a daemon: Configure names it."""
        self._lock = threading.Lock()
        self._daemon: Daemon | None = None
        self._engine: str | None = None

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
        return plugin_pb2.PluginInfo(version=PLUGIN_VERSION)

    def GetSchema(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Answer with the schema of what is carried."""
        return provider_pb2.GetSchemaResponse(schema=json.dumps(package_schema(PLUGIN_VERSION)))

    def Cancel(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:  # noqa: N802, ARG002
        """End the waiting of calls that are under way."""
        with self._lock:
            if self._daemon is not None:
                self._daemon.cancelled.set()
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Refuse: there are no functions."""
        context.abort(
            grpc.StatusCode.UNKNOWN,
            f"the stand-in for the docker plugin has no functions such as {request.tok}; "
            f"install the real plugin with {REAL_PLUGIN}",
        )

    # -- configuration

    @_guarded
    def CheckConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Check the arguments of the provider resource."""
        given = _decoded(from_struct(request.news))
        failures = check_provider(given, provider_arguments(), resource_name=_name(request))
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
        for name in provider_arguments():
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
    def Configure(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Choose the daemon and see whether it answers. Refuses daemons on other machines."""
        arguments = _decoded(from_struct(request.args))
        failures = check_provider(arguments, provider_arguments(), resource_name="provider")
        if failures:
            raise _RefusedError(" ".join(each.reason for each in failures))
        configured = arguments.get("host") or request.variables.get("docker:config:host")
        host = resolve_host(configured)
        with self._lock:
            if self._daemon is None or self._daemon.cancelled.is_set():
                self._daemon = Daemon(host)
            elif self._daemon.host != host:
                # requests do not tell which provider resource they belong to
                raise _RefusedError(
                    f"this stand-in for the docker plugin serves {self._daemon.host} already, and not "
                    f"{host} too; use one docker provider, or the real plugin ({REAL_PLUGIN})"
                )
            daemon = self._daemon
        if not arguments.get("disableDockerDaemonCheck"):
            daemon.ping()
        self._announce()
        return provider_pb2.ConfigureResponse(
            acceptSecrets=False, supportsPreview=True, supports_autonaming_configuration=True
        )

    def _announce(self) -> None:
        if not self._engine:
            return
        with grpc.insecure_channel(self._engine) as channel:
            try:
                engine_pb2_grpc.EngineStub(channel).Log(
                    engine_pb2.LogRequest(severity=engine_pb2.INFO, message=f"docker: {ANNOUNCEMENT}"),
                    timeout=5,
                )
            except grpc.RpcError as error:
                _log.warning("the engine did not take the announcement: %s", error)

    # -- resources

    @_guarded
    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Check a resource's arguments and fill in defaults."""
        schema, behaviour = _kind(request)
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
            schema,
            behaviour,
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
        schema, behaviour = _kind(request)
        found = diff(
            from_struct(request.olds),
            from_struct(request.news),
            schema,
            behaviour,
            list(request.ignoreChanges),
        )
        response = provider_pb2.DiffResponse
        return response(
            changes=response.DIFF_SOME if found.changes else response.DIFF_NONE,
            replaces=found.replaced_properties,
            stables=found.stable,
            deleteBeforeReplace=found.delete_before_replace,
            diffs=found.changed_properties,
            detailedDiff={
                path: provider_pb2.PropertyDiff(kind=_diff_kind(change, replaces=path in found.replacing))
                for path, change in found.changes.items()
            },
            hasDetailedDiff=True,
        )

    @_guarded
    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Make a resource; a preview touches nothing."""
        schema, behaviour = _kind(request)
        inputs = from_struct(request.properties)
        if request.preview:
            state = known_before_create(planned(inputs, schema, behaviour, computed=UNKNOWN))
            return provider_pb2.CreateResponse(properties=to_struct(state))
        daemon = self._connected()
        try:
            state = _create(daemon, inputs, schema, behaviour)
        except PartlyCreatedError as error:
            # what Docker filled in stays unread, which makes the next update replace the container
            state = planned(inputs, schema, behaviour) | {"id": error.identifier, "__meta": meta(behaviour)}
            _abort_partly(context, error.identifier, state, f"creating {request.urn}: {error.reason}")
        return provider_pb2.CreateResponse(id=state["id"], properties=to_struct(state))

    @_guarded
    def Read(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Read a resource's real state, for a refresh or, where there is no old state, for an import."""
        schema, behaviour = _kind(request)
        prior = from_struct(request.properties)
        inputs = from_struct(request.inputs)
        found = _read(self._connected(), schema.token, request.id, prior)
        if found is None:
            return provider_pb2.ReadResponse()
        if prior:
            state = {**prior, **found}
            known = refreshed_inputs(inputs, state, schema, behaviour)
        else:
            state = planned({}, schema, behaviour) | dict.fromkeys(behaviour.defaults) | found
            state = {name: value for name, value in state.items() if "." not in name}
            known = imported_inputs(state, schema, behaviour)
        state["__meta"] = meta(behaviour)
        return provider_pb2.ReadResponse(id=found["id"], properties=to_struct(state), inputs=to_struct(known))

    @_guarded
    def Update(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """Change a resource in place."""
        schema, behaviour = _kind(request)
        old, inputs = from_struct(request.olds), from_struct(request.news)
        ignored = list(request.ignoreChanges)
        found = diff(old, inputs, schema, behaviour, ignored)
        if found.replacing:
            raise _RefusedError(
                f"{request.urn} cannot be updated in place: {', '.join(found.replaced_properties)} changes"
            )
        state = updated(old, inputs, schema, behaviour, ignored)
        state["id"], state["__meta"] = request.id, meta(behaviour)
        if not request.preview:
            daemon = self._connected()
            if schema.token.endswith(":Container"):
                container.update(daemon, request.id, old, state)
            elif schema.token.endswith(":RemoteImage"):
                state |= image.create(daemon, {"name": state["name"], "platform": state.get("platform")})
        return provider_pb2.UpdateResponse(properties=to_struct(state))

    @_guarded
    def Delete(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:  # noqa: N802, ARG002
        """Remove a resource; one that is gone already is no error."""
        schema, _ = _kind(request)
        state = from_struct(request.properties)
        daemon = self._connected()
        match schema.token.rsplit(":", 1)[1]:
            case "Network":
                network.delete(daemon, request.id)
            case "Volume":
                volume.delete(daemon, request.id)
            case "RemoteImage":
                image.delete(daemon, state)
            case _:
                container.delete(daemon, request.id, state)
        return empty_pb2.Empty()

    def _connected(self) -> Daemon:
        with self._lock:
            if self._daemon is None:
                raise _RefusedError("the docker provider was not configured")
            return self._daemon


def _decoded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the provider arguments that come as JSON text."""
    decoded = dict(arguments)
    for name in _JSON_CONFIG:
        value = decoded.get(name)
        if isinstance(value, str) and value != UNKNOWN:
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


def _kind(request: Any) -> tuple[ResourceSchema, Behaviour]:
    """Return schema and behaviour of the request's resource type. Raises for types that are not carried."""
    # urn:pulumi:STACK::PROJECT::PARENT$TYPE::NAME, https://www.pulumi.com/docs/iac/concepts/resources/names/
    token = str(request.urn).split("::")[2].split("$")[-1]
    if token not in behaviours():
        carried = ", ".join(sorted(each.rsplit(":", 1)[1] for each in behaviours()))
        raise _RefusedError(
            f"unrecognized resource type {token}: the stand-in for the docker plugin carries {carried}; "
            f"install the real plugin with {REAL_PLUGIN}"
        )
    return resource_schemas()[token], behaviours()[token]


def _diff_kind(change: Change, *, replaces: bool) -> Any:
    return provider_pb2.PropertyDiff.Kind.Value(f"{change.value}_REPLACE" if replaces else change.value)


def _create(
    daemon: Daemon, inputs: Mapping[str, Any], schema: ResourceSchema, behaviour: Behaviour
) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    match schema.token.rsplit(":", 1)[1]:
        case "Network":
            identifier = network.create(daemon, inputs)
        case "Volume":
            identifier = volume.create(daemon, inputs)
        case "RemoteImage":
            found = image.create(daemon, inputs)
            return created(inputs, found, schema, behaviour) | {"__meta": meta(behaviour)}
        case _:
            creation = container.create(daemon, inputs)
            identifier = creation.identifier
            if creation.logs is not None:
                extra["containerLogs"] = creation.logs
    prior = planned(inputs, schema, behaviour)
    try:
        observed = _read(daemon, schema.token, identifier, prior)
    except OperationError as error:
        raise PartlyCreatedError(identifier, str(error)) from error
    if observed is None:
        raise OperationError(f"{schema.token} {identifier} was made, but is gone already")
    return created(inputs, observed | extra, schema, behaviour) | {"__meta": meta(behaviour)}


def _read(daemon: Daemon, token: str, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:
    match token.rsplit(":", 1)[1]:
        case "Network":
            return network.read(daemon, identifier)
        case "Volume":
            return volume.read(daemon, identifier)
        case "RemoteImage":
            # upstream has no importer for images and goes by the name in the state alone
            return image.read(daemon, str(prior.get("name") or ""))
        case _:
            return container.read(daemon, identifier, prior)


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


def serve(address: str = "127.0.0.1:0") -> tuple[grpc.Server, int]:
    """
    Start serving on ``address`` (port 0: one that is free); return the server and its port.

    Raises `RuntimeError` if the address cannot be had.
    """
    limit = 400 * 1024 * 1024  # as the engine's own (pulumi, sdk/go/common/util/rpcutil/serve.go)
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=_THREADS),
        options=[("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)],
    )
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(DockerProvider(), server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port
