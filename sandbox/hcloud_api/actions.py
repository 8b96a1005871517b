"""Actions: what takes time runs in threads of its own, and is followed through ``GET /actions``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .faults import ActionFault, Faults
from .state import Action, Project, now

_PROGRESS_SECONDS = 0.05
"""How often the progress of a slow action is written."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """
    One action to run.

    ``resources`` are (type, ID). ``work`` is what takes time, such as booting a machine: it runs without the
    project's lock, and whatever it raises is the action's error. ``done`` then changes the project, or else
    ``failed`` does. ``locks`` is a server that nothing else may be done to meanwhile.
    """

    command: str
    resources: Sequence[tuple[str, int]]
    work: Callable[[], None] | None = None
    done: Callable[[], None] | None = None
    failed: Callable[[], None] | None = None
    locks: int | None = None


class Actions:
    """Runs the actions of a project."""

    def __init__(self, project: Project, faults: Faults) -> None:
        """Begin without any thread."""
        self._project = project
        self._faults = faults
        self._ending = threading.Event()
        self._threads: set[threading.Thread] = set()

    def run(self, *steps: Step) -> list[Action]:
        """
        Start actions that run one after the other, and return them as they are now.

        When one fails, those after it fail too. Steps that neither work nor have a fault have ended already.
        The caller holds the project's lock.
        """
        faults = [self._faults.of_action(step.command) for step in steps]
        actions = [self._new(step) for step in steps]
        if not any(faults) and not any(step.work for step in steps):
            for step, action in zip(steps, actions, strict=True):
                _succeed(step, action)
            return actions
        plan = list(zip(steps, actions, faults, strict=True))
        thread = threading.Thread(target=self._run, args=(plan,), name=steps[0].command, daemon=True)
        self._threads = {one for one in self._threads if one.is_alive()} | {thread}
        thread.start()
        return actions

    def end(self, seconds: float) -> None:
        """Hurry the actions that are slow on request, and wait for all of them, at most ``seconds``."""
        self._ending.set()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _new(self, step: Step) -> Action:
        action = Action(
            id=self._project.new_id(),
            command=step.command,
            resources=[{"id": identity, "type": kind} for kind, identity in step.resources],
            started=now(),
            locks=step.locks,
        )
        self._project.actions[action.id] = action
        return action

    def _run(self, plan: Sequence[tuple[Step, Action, ActionFault | None]]) -> None:
        error: dict[str, str] | None = None
        for step, action, fault in plan:
            if error is None:
                error = self._work(step, action, fault)
            with self._project.lock:
                if error is None:
                    _succeed(step, action)
                else:
                    _fail(step, action, error)
                self._project.save()

    def _work(self, step: Step, action: Action, fault: ActionFault | None) -> dict[str, str] | None:
        """Return the error that the action ends with, if any."""
        if fault is not None:
            self._dawdle(action, fault.seconds)
            if fault.error is not None:
                return fault.error
        try:
            if step.work is not None:
                step.work()
        except Exception as error:  # noqa: BLE001 - nobody else would end the action
            _LOG.exception("%s", step.command)
            return {"code": "action_failed", "message": str(error)}
        return None

    def _dawdle(self, action: Action, seconds: float) -> None:
        begun = time.monotonic()
        while (spent := time.monotonic() - begun) < seconds:
            action.progress = int(100 * spent / seconds)
            if self._ending.wait(min(_PROGRESS_SECONDS, seconds - spent)):
                return


def _succeed(step: Step, action: Action) -> None:
    if step.done is not None:
        step.done()
    action.status, action.progress, action.finished = "success", 100, now()


def _fail(step: Step, action: Action, error: dict[str, str]) -> None:
    if step.failed is not None:
        step.failed()
    action.status, action.progress, action.finished, action.error = "error", 100, now(), error
