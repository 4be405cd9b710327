"""Every error that lb_xdp raises on purpose, in one tree.

    LbError                         exit 1   something failed: what, where, next step
     ├─ InvalidConfigError          exit 3   carries every ConfigProblem found, not just the first
     ├─ DaemonUnreachableError      exit 4   no daemon answers on the API socket
     ├─ AlreadyRunningError         exit 1   another daemon holds this gateway's lock
     ├─ AddressInUseError           exit 1   a listening address of ours is taken
     ├─ HostError                   exit 1   the host lacks something: privilege, sysctl, interface
     │   ├─ PrivilegeError
     │   └─ InterfaceError
     ├─ NetlinkError                exit 1   the kernel refused a route, neighbour or link query
     ├─ RequestError                exit 1   a request of the API does not say what is wanted
     │   ├─ MediaError              its body is of a kind that is not taken
     │   └─ DeniedError             from somebody who may not do that
     ├─ UnknownNameError            exit 1   no service, backend or override has that name
     ├─ UnfitOverrideError          exit 1   an override asks for what cannot be
     ├─ StoreError                  exit 1   what must survive a restart cannot be written
     ├─ StaleError                  exit 1   the gateway has changed since the caller looked
     ├─ NotNowError                 exit 1   as things stand it cannot be done
     │   └─ TooMuchMovedError       more slots would move than was allowed
     ├─ StoppedError                exit 1   the daemon is told to stop before it is done
     └─ DatapathError               exit 1   anything about BPF
         ├─ CompileError            the C did not compile; carries file and line
         ├─ VerifierError           the kernel refused the program; carries the whole log
         ├─ MapError                a map could not be made, reopened or written
         ├─ AttachError             a program could not be attached
         │   └─ StrangerError       another program is there, not ours to replace
         ├─ UnsupportedError        this kernel lacks a feature
         └─ SelfTestError           a program does not do what the reference model does

Adapters translate foreign exceptions at their edge with ``raise ... from``. This module imports
nothing of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LbError(Exception):
    """Root of the tree. ``exit_code`` is what a command leaves with."""

    exit_code = 1


@dataclass(frozen=True, slots=True, order=True)
class ConfigProblem:
    """One mistake in a configuration file, with its place.

    ``line`` and ``column`` count from 1; 0 means that the place is the whole file. ``path`` is the
    dotted path of the value (``services[0].vip``), empty where there is none.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        """Return ``file:line:col: path: message``, the form editors jump to."""
        place = f"{self.file}:{self.line}:{self.column}: "
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class InvalidConfigError(LbError):
    """The configuration is refused; nothing was touched."""

    exit_code = 3

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems: tuple[ConfigProblem, ...] = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DaemonUnreachableError(LbError):
    """No daemon answers: not running, or another socket."""

    exit_code = 4


class AlreadyRunningError(LbError):
    """A daemon of this gateway name runs already."""


class AddressInUseError(LbError):
    """An address that the daemon should listen on is taken."""


class HostError(LbError):
    """The host is not prepared for what the configuration asks."""


class PrivilegeError(HostError):
    """The process may not load BPF programs or change interfaces."""


class InterfaceError(HostError):
    """An interface of the configuration does not exist or cannot be used."""


class NetlinkError(LbError):
    """The kernel refused or did not answer a netlink request."""


class RequestError(LbError):
    """A request of the API does not say what is wanted. ``place`` is where: ``body.weight``."""

    def __init__(self, message: str, *, place: str = "", malformed: bool = False) -> None:
        self.place = place
        self.malformed = malformed
        super().__init__(message)


class MediaError(RequestError):
    """The body of a request is of a kind or in a coding that is not taken (RFC 9110, 15.5.16)."""


class DeniedError(RequestError):
    """Whoever asks is not known, or may not do that. ``known`` tells one from the other."""

    def __init__(self, message: str, *, known: bool) -> None:
        self.known = known
        super().__init__(message)


class UnknownNameError(LbError):
    """No service, backend or override has that name; the message says which there are."""


class UnfitOverrideError(LbError):
    """An override asks for what cannot be; nothing was changed."""


class StoreError(LbError):
    """What must survive a restart cannot be written to disk; nothing was changed."""


class StaleError(LbError):
    """The gateway has changed since the caller looked (RFC 9110, 13.1.1); nothing was changed."""


class NotNowError(LbError):
    """As things stand it cannot be done; nothing was changed."""


class TooMuchMovedError(NotNowError):
    """More slots would move than was allowed; nothing was changed."""


class StoppedError(LbError):
    """The daemon was told to stop while something was under way; that was given up."""


class DatapathError(LbError):
    """Anything about BPF programs, maps and links."""


class CompileError(DatapathError):
    """The C source did not compile. ``file`` and ``line`` name the first error where known."""

    def __init__(self, message: str, *, file: str = "", line: int = 0, output: str = "") -> None:
        self.file = file
        self.line = line
        self.output = output
        place = f"{file}:{line}: " if file else ""
        super().__init__(f"{place}{message}")


class VerifierError(DatapathError):
    """The kernel's verifier refused a program. ``log`` is everything that it said."""

    def __init__(self, message: str, *, log: str = "") -> None:
        self.log = log
        super().__init__(message)


class MapError(DatapathError):
    """A BPF map could not be created, reopened, read or written."""


class AttachError(DatapathError):
    """A program could not be attached to an interface."""


class StrangerError(AttachError):
    """The interface carries an XDP program that is not ours."""


class SelfTestError(DatapathError):
    """A freshly loaded program and the reference model differ about a packet: never run it."""


class UnsupportedError(DatapathError):
    """The running kernel lacks ``feature``."""

    def __init__(self, feature: str, kernel: str, remedy: str) -> None:
        self.feature = feature
        self.kernel = kernel
        super().__init__(f"{feature} is missing in kernel {kernel}: {remedy}")
