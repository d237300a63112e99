"""Timeouts and intervals of rayvisor's own machinery, all in seconds.

One frozen `Timeouts` is made with a tree and passed down to everything that waits. The times that users
choose for their children (start timeouts, stall limits, shutdown times, backoff) are in the specs of the
children.

>>> Timeouts().ray.create_host
20.0
>>> Timeouts(runtime=RuntimeTimeouts(clean=5.0)).runtime.clean
5.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import cast

from rayvisor._validation import seconds
from rayvisor.errors import SpecError

__all__ = [
    "CommandTimeouts",
    "EdgeTimeouts",
    "HostTimeouts",
    "ProcessTimeouts",
    "RayTimeouts",
    "RuntimeTimeouts",
    "ServerTimeouts",
    "Timeouts",
    "VllmTimeouts",
]


class _Group:
    """A group of timeouts. A value that is no finite number of seconds raises SpecError."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # every group is a dataclass
            seconds(each.name, getattr(self, each.name), below=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTimeouts(_Group):
    """Processes of a node: looking at them, ending them, proving that they are gone."""

    death_poll: float = 0.02
    """Between two looks at watched processes whose deaths the kernel does not report."""
    gone_poll: float = 0.005
    """Between two looks whether killed processes are gone."""
    suspend: float = 0.5
    """How long a kill of a tree without a key waits until all its processes are stopped."""
    load: float = 0.2
    """How long the load of a process is measured."""
    agent_scan: float = 0.5
    """Between two scans of the node agent for new processes of a host."""
    agent_kill: float = 5.0
    """How long the node agent tries to kill what a dead host has left."""
    reaper_scan: float = 0.5
    """Between two scans of the reaper for new processes of its host."""
    reaper_kill: float = 8.0
    """How long the reaper tries to kill what a dead host has left."""
    reaper_start: float = 10.0
    """How long the reaper may take to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimeouts(_Group):
    """An engine host: its stream, its engine, and hosts in the driver's own process."""

    batch_interval: float = 0.04
    """Between two batches of items while tokens flow."""
    batch_interval_urgent: float = 0.002
    """Between two batches when an item should not wait, such as a first token."""
    heartbeat: float = 1.0
    """After this long without items an empty batch is sent: it shows that host and loop are alive."""
    fault_status_poll: float = 0.05
    """Between two looks at the fault status of an engine that reports one."""
    fault_status_reminder: float = 1.0
    """How often an engine that stays unhealthy is reported again, as the first report may have been early."""
    start_poll: float = 1.0
    """The most between two looks at the processes of an engine that starts."""
    predecessor_end: float = 10.0
    """How long an older engine may take to end when a newer one is to start."""
    answer: float = 10.0
    """How long a host in the driver's process may take to answer."""
    answer_slack: float = 5.0
    """How much longer than the call's own timeout an answer is waited for."""
    log_retention: float = 7 * 86400.0
    """How long logs of hosts that are gone are kept."""
    log_settle: float = 0.1
    """How long the exit code of a dead engine and the last lines of its log are waited for."""
    log_poll: float = 0.002
    """Between two looks at them."""
    sim_kill: float = 5.0
    """How long the processes of a simulated engine may take to disappear after SIGKILL."""
    sim_exit: float = 1.0
    """How long a simulated engine may take to end by itself."""
    sim_scan: float = 0.1
    """Between two scans of a simulated engine for new processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmTimeouts(_Group):
    """The vLLM engine and the template process that it is forked from."""

    scan: float = 0.1
    """Between two scans for new processes of a starting engine."""
    error: float = 0.02
    """How long vLLM's own error is waited for once a process of a starting engine has ended."""
    progress: float = 2.0
    """Between two reports of the progress of a start, read from the log."""
    kill: float = 5.0
    """How long engine processes may take to disappear after SIGKILL."""
    cleanup: float = 5.0
    """How long vLLM's own shutdown, and a step of a start, may go on once the processes have ended."""
    flag_poll: float = 0.25
    """Between two looks at the flag with which vLLM marks an engine as dead."""
    release: float = 1.0
    """How long the release of an engine's client may take."""
    abort: float = 1.0
    """How long vLLM may take to accept an abort."""
    host_check: float = 1.0
    """How often a template checks that its host is alive; its socket may live on in another process."""
    template_status: float = 5.0
    """How long a template may take to report the exit code of a process that it has forked."""
    template_status_poll: float = 0.05
    """How long the first look for that exit code waits; later ones do not wait."""
    template_poll: float = 0.1
    """Between two looks at a template that imports."""
    template_answer: float = 5.0
    """How long a template may take to fork a process."""
    template_idle: float = 15.0
    """How long a template that imports may be without any processor time before it is given up."""
    template_import: float = 600.0
    """How long a template may take to import vLLM."""
    sockets_abandoned: float = 600.0
    """A folder of sockets in which nothing has changed for this long belongs to a host that was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTimeouts(_Group):
    """A ``vllm serve`` process."""

    request: float = 5.0
    """How long an answer of the server's API may take."""
    status_poll: float = 0.1
    """Between two looks at the status of a server with fault tolerance."""
    follow: float = 0.025
    """Between two looks at that status while the server carries out an instruction."""
    kill: float = 5.0
    """How long its processes may take to disappear after SIGKILL."""
    poll: float = 0.1
    """Between two looks at a server that starts."""
    progress: float = 1.0
    """Between two reports of the progress of a start, read from the log."""
    leave: float = 1.0
    """How long a server may take to exit by itself once its engine has exited."""
    settled: float = 60.0
    """A server that does not count tokens counts as productive after being healthy for this long."""
    sim_stop: float = 5.0
    """How long the simulated server may take to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayTimeouts(_Group):
    """Calls to Ray, its actors and its control store."""

    connect: float = 60.0
    """How long starting a local Ray, or attaching to a running one, may take."""
    disconnect: float = 30.0
    """How long the shutdown of Ray may take."""
    call: float = 10.0
    """How long a call to Ray may take that has no timeout of its own."""
    node_table: float = 5.0
    """How long reading Ray's table of nodes may take."""
    own_processes: float = 5.0
    """How long finding the processes of a Ray that was started here, and then ending them, may take."""
    create_host: float = 20.0
    """How long Ray may take to accept the creation of a host actor."""
    create_actor: float = 20.0
    """How long Ray may take to accept the creation of a user's actor."""
    create_agent: float = 30.0
    """How long a node agent may take to come up."""
    agent_answer: float = 5.0
    """How long a node agent may take to answer."""
    agent_slack: float = 2.0
    """How much longer than the call's own timeout a node agent is waited for."""
    host_answer: float = 10.0
    """How long a host may take to answer."""
    host_slack: float = 5.0
    """How much longer than the call's own timeout a host is waited for."""
    host_kill: float = 1.0
    """How long Ray's kill of a host is waited for before its node agent is asked."""
    host_adoption: float = 30.0
    """How long the agent of its node may take to adopt a new host."""
    apart_from: float = 10.0
    """How long the creation of a host waits for the nodes of its siblings; some may not find room yet."""
    loop_blocked: float = 0.5
    """When a host's event loop has been blocked for this long, its stack is written down."""
    actor_kill: float = 6.0
    """How long Ray may take to confirm that a killed actor is dead."""
    user_call: float = 3600.0
    """How long a user's function may take that is called without a timeout; it holds a thread meanwhile."""
    unavailable_retry_first: float = 0.2
    """The first pause before a starting actor that Ray cannot reach is called again; doubled each time."""
    unavailable_retry_longest: float = 2.0
    """The longest of these pauses."""
    last_words: float = 1.0
    """How long the last words of a dead actor are waited for."""
    adopted_poll: float = 0.2
    """Between two looks for the name of an actor that is to be adopted."""
    adopted_restart: float = 10.0
    """How long ending an incarnation of an adopted actor may take, whether Ray then restarts it or not."""
    adopted_reach: float = 5.0
    """How long an adopted actor may take to be reached."""
    node_poll: float = 1.0
    """Between two looks at the node table while nothing is pushed."""
    pushed_poll: float = 10.0
    """Between two looks at an actor, or at the node table, while changes are pushed."""
    subscribe: float = 10.0
    """How long a subscription to Ray's control store may take."""
    subscription_close: float = 1.0
    """How long the end of a subscription may take."""
    resubscribe_first: float = 0.5
    """The first pause before a broken subscription is opened again."""
    resubscribe_longest: float = 10.0
    """The longest of these pauses."""
    task_poll: float = 0.02
    """Between two looks whether the refs of running tasks are ready."""
    task_stop: float = 1.0
    """How long the exit of this process waits for the thread that looks at the refs to stop."""
    task_read: float = 2.0
    """How long a look at Ray's table of task attempts may take."""
    task_forced_cancel: float = 15.0
    """How long a task may take to end after a forced cancellation."""
    task_look_first: float = 0.3
    """The first pause between two looks at the attempts of a task that runs; each is half as long again."""
    task_look_longest: float = 5.0
    """The longest of these pauses."""
    task_last_look: float = 0.4
    """Between two looks at the attempts of a task that has ended; Ray records them about a second late."""
    task_ray_check: float = 1.0
    """Between two checks that Ray is still connected while tasks run."""
    actor_poll: float = 0.5
    """Between two looks at an actor while nothing is pushed."""
    actor_row: float = 5.0
    """How long a look at one actor in Ray's table may take."""
    worker_row: float = 2.0
    """How long a look at one worker in Ray's table may take."""
    suspect_first: float = 0.1
    """The first pause before an actor that could not be reached is called again."""
    suspect_longest: float = 2.0
    """The longest of these pauses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeTimeouts(_Group):
    """Effects of the core as they are carried out, and the end of a tree."""

    unreachable: float = 30.0
    """How long Ray may be unable to reach an actor; by default it takes 16 s to find that a node is lost."""
    proof: float = 10.0
    """How long the end of an actor or a host, and its proof, may take."""
    outcome: float = 2.0
    """How long an outcome that Ray has not confirmed yet is waited for."""
    stream_reopen: float = 0.05
    """The pause before a host's broken stream is opened again."""
    coroutine_kill: float = 1.0
    """How long a task that was cancelled past its shields is waited for; Python has nothing stronger."""
    host_view: float = 5.0
    """How long the look at a silent host from outside may take."""
    starting_host_poll: float = 1.0
    """Between two looks at a host whose engine starts."""
    recovery_poll: float = 0.01
    """Between two looks at an engine that recovers."""
    recovery_lag: float = 0.5
    """How much later than its acknowledgement an engine's new status may come."""
    same_signal: float = 0.3
    """How long after a signal another one is the same request: a terminal and a launcher may both send it."""
    unwind: float = 1.0
    """How long a cancelled call may take to clean up before it is abandoned."""
    start_slack: float = 10.0
    """How much longer than its start timeout a start is waited for."""
    stop_slack: float = 30.0
    """How much longer than its shutdown time a stop may take, for the kill and its proof."""
    clean: float = 30.0
    """How long ending the rest of an incarnation, and its proof, may take."""
    release: float = 30.0
    """How long giving back the resources of a child may take."""
    freeze: float = 10.0
    """How long an engine may take to pause or resume generation."""
    pause_hook: float = 60.0
    """How long a pause or resume hook may take."""
    pause_hook_retry: float = 0.5
    """The first pause before a hook is called again; doubled each time."""
    gate_retry: float = 0.5
    """The first pause before a readiness gate is tried again; doubled each time."""
    send: float = 10.0
    """How long a host may take to accept a command for its engine."""
    close: float = 60.0
    """How long giving everything back may take once the tree has ended."""
    resisting_tasks: float = 5.0
    """How long tasks that ignore their cancellation are waited for at the very end."""
    loop_blocked: float = 2.0
    """An event loop that is blocked for this long is reported."""
    watchdog_round: float = 0.5
    """Between two looks of the watchdog thread."""
    watchdog_tick: float = 0.05
    """Between two looks of the watchdog thread at a loop that may be blocked."""
    next_incarnation: float = 60.0
    """How long an idempotent call without a timeout waits for the next incarnation."""
    actor_lookup: float = 10.0
    """How long looking up an actor by name may take."""
    actor_lookup_retry: float = 0.1
    """Between two look-ups, in processes other than the supervisor's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTimeouts(_Group):
    """Interfaces to a running tree: control socket, live page, published records."""

    connect: float = 5.0
    """How long connecting to a control socket may take."""
    answer: float = 900.0
    """How long an answer may take unless the call says otherwise; a restart waits for its engine."""
    read: float = 10.0
    """How long a client may take to send its request."""
    write: float = 10.0
    """How long a client may take to read an answer."""
    close: float = 1.0
    """How long closing a connection may take."""
    linger: float = 1.0
    """How long a refused client is read from before its connection is closed."""
    accept_retry: float = 0.1
    """The pause after an accept that failed."""
    report: float = 5.0
    """Connections that were refused within this time are logged together."""
    hang_up: float = 0.5
    """How often it is checked whether a reader that sends nothing any more still reads."""
    unread: float = 10.0
    """How long a reader may read nothing if another one needs its place."""
    live_read: float = 10.0
    """How long a reader of ``/live`` may take for a message before it is dropped."""
    live_interval: float = 0.2
    """The shortest time between two messages of ``/live``."""
    live_gather: float = 0.02
    """Changes within this time of the first one go into the same message."""
    live_poll: float = 1.0
    """How often figures that no record announces are read while somebody reads."""
    live_silence: float = 5.0
    """The longest time without a message.

    Without one the page drops its connection after 15 s, and ``status --watch`` after ``commands.silence``.
    """
    live_jitter: float = 0.5
    """A time computed from an age moves by less than this without counting as changed."""
    live_rate: float = 1.0
    """The window over which rates are computed."""
    publish_linger: float = 1.0
    """How long the end waits for the last published messages to be sent."""
    publish_report: float = 10.0
    """Dropped messages are logged at most this often."""
    claim: float = 5.0
    """How long claiming the path of a socket may take."""
    probe: float = 1.0
    """How long a socket may take to show that it is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandTimeouts(_Group):
    """Commands, the demo and the testing module."""

    silence: float = 12.0
    """A tree sends something every five seconds; after this long without it the connection is lost."""
    reconnect: float = 0.5
    """Between two attempts to connect again."""
    figures: float = 5.0
    """Between two lines of figures."""
    frame: float = 0.25
    """Between two pictures on a terminal."""
    fresh: float = 30.0
    """For this long after a change a child is shown before unchanged ones."""
    pause_slack: float = 30.0
    """How much longer than its own timeout a pause is waited for."""
    stop: float = 3600.0
    """How long ``rayvisor stop`` waits for the end of the tree."""
    last_lines: float = 5.0
    """How long ``rayvisor run`` waits for its last lines to be written."""
    train: float = 900.0
    """How long the training of the demo's model may take."""
    demo_settle: float = 10.0
    """How long the last processes of the demo may take to disappear."""
    demo_open: float = 30.0
    """How long the demo waits for its live page to be opened."""
    demo_phase: float = 2.0
    """Between two lines about the same phase of a start."""
    rehearsal: float = 30.0
    """How long an engine may take to accept a rehearsed fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """All timeouts and intervals of rayvisor's own machinery, in seconds, by layer.

    Parameters
    ----------
    process
        Processes of a node: looking at them, ending them, proving that they are gone.
    host
        Engine hosts: their streams, their engines, and hosts in the driver's own process.
    vllm
        vLLM engines, and the template processes that they are forked from.
    server
        ``vllm serve`` processes.
    ray
        Calls to Ray, its actors and its control store.
    runtime
        Starting, ending and watching the children, and the end of a tree.
    edges
        Control socket, live page and published records.
    commands
        Commands, the demo and the testing module.

    Raises
    ------
    SpecError
        A group of another type. A group raises it for a value that is no finite number of seconds.

    Examples
    --------
    >>> Timeouts(runtime=RuntimeTimeouts(clean=5.0)).runtime.clean
    5.0
    """

    process: ProcessTimeouts = field(default_factory=ProcessTimeouts)
    host: HostTimeouts = field(default_factory=HostTimeouts)
    vllm: VllmTimeouts = field(default_factory=VllmTimeouts)
    server: ServerTimeouts = field(default_factory=ServerTimeouts)
    ray: RayTimeouts = field(default_factory=RayTimeouts)
    runtime: RuntimeTimeouts = field(default_factory=RuntimeTimeouts)
    edges: EdgeTimeouts = field(default_factory=EdgeTimeouts)
    commands: CommandTimeouts = field(default_factory=CommandTimeouts)

    def __post_init__(self) -> None:
        for each in fields(self):
            group, kind = getattr(self, each.name), cast("type[_Group]", each.default_factory)
            if not isinstance(group, kind):
                raise SpecError(each.name, group, f"must be a {kind.__name__}")


DEFAULT_TIMEOUTS = Timeouts()
"""The timeouts of a tree that was given no others."""
