"""A virtual machine with a stock Debian kernel: QEMU, its network cards, and commands inside.

This module owns the QEMU process and the channel to the guest's ``agent``. It refuses to build
images (scripts/vm-image.bash does) and to know what the cards are plugged into.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

BOOT_TIMEOUT_S = 180
"""Ten times what an emulated machine takes when it has the host to itself."""
_EMULATED_SLOWNESS = 5
"""For tests/support/pace.py: requests per second; what is Python alone is 10 to 20 times slower."""


class MachineError(Exception):
    """The machine did not do what it was asked; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Card:
    """A network card, plugged into the tap of the same name."""

    tap: str
    mac: str
    model: str = "virtio-net-pci"
    queues: int = 1
    options: str = ""

    def arguments(self) -> list[str]:
        """Return what QEMU wants to hear about it."""
        netdev = f"tap,id={self.tap},ifname={self.tap},script=no,downscript=no,vhost=off"
        device = f"{self.model},netdev={self.tap},mac={self.mac}{self.options}"
        if self.queues > 1:
            netdev += f",queues={self.queues}"
            device += f",mq=on,vectors={2 * self.queues + 2}"
        return ["-netdev", netdev, "-device", device]


class Machine:
    """A running machine. ``image`` has vmlinuz, initrd.img and disk.img, which stays as it is.

    ``start`` starts QEMU: in a namespace of the lab, or anywhere if there are no cards.
    """

    def __init__(
        self,
        image: Path,
        repository: Path,
        folder: Path,
        start: Callable[..., subprocess.Popen[str]],
        cards: Sequence[Card] = (),
    ) -> None:
        self.console = folder / "console.log"
        with (folder / "qemu.log").open("w") as log:
            command = _command(image, repository, folder, self.console, cards)
            self.slowness = 1 if "kvm" in command else _EMULATED_SLOWNESS
            self._process = start(*command, stdout=log, stderr=subprocess.STDOUT)
        self._channel = self._connect(folder / "agent.sock")
        self._rest = b""
        self._await_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout_s: float = 300,
        echo: Callable[[str], None] = lambda _: None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest, in the checkout there. Raise `MachineError` if it fails."""
        self._channel.sendall(json.dumps({"command": command}).encode() + b"\n")
        deadline, output = time.monotonic() + timeout_s, ""
        while "code" not in (message := self._message(deadline, " ".join(command))):
            output += message["output"]
            echo(message["output"])
        if check and message["code"] != 0:
            raise MachineError(f"{' '.join(command)}: exit {message['code']}\n{output}")
        return subprocess.CompletedProcess(command, message["code"], output)

    def write(self, path: str, text: str) -> None:
        """Write a file in the guest, with the folders that lead to it."""
        script = 'mkdir -p "${1%/*}" && printf %s "$2" >"$1"'
        self.run("sh", "-c", script, "sh", path, text)

    def reboot(self) -> None:
        """Restart the guest as an operator would, and return when it is up again."""
        self._channel.sendall(b'{"command": ["systemctl", "reboot"]}\n')
        self._await_ready()

    def close(self) -> None:
        """Pull the plug: what the guest wrote is gone."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + 10
        channel = socket.socket(socket.AF_UNIX)
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                channel.connect(str(path))
            except OSError:
                time.sleep(0.05)
            else:
                return channel
        self._process.kill()
        raise MachineError(f"QEMU does not start: {_tail(self.console.with_name('qemu.log'))}")

    def _await_ready(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while "ready" not in self._message(deadline, "boot"):
            pass

    def _message(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\n" not in self._rest:
            self._channel.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                piece = self._channel.recv(65536)
            except TimeoutError as error:
                raise MachineError(f"{what}: no answer in time\n{_tail(self.console)}") from error
            if not piece:
                raise MachineError(f"{what}: the machine is gone\n{_tail(self.console)}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def _tail(path: Path) -> str:
    text = path.read_text(errors="replace") if path.exists() else "(it said nothing)"
    return "\n".join(text.splitlines()[-30:])


def cpus() -> int:
    """Return how many CPUs a machine gets: 2, or what LB_XDP_VM_CPUS says.

    Emulated with 4 on 4 busy cores, a Linux 6.1 hung for good when its CPUs had to wait for each
    other early in the boot (stop_machine); with 2 it never did.
    """
    return int(os.environ.get("LB_XDP_VM_CPUS", "2"))


def _command(
    image: Path, repository: Path, folder: Path, console: Path, cards: Sequence[Card]
) -> list[str]:
    kernel = ["root=/dev/vda", "rw", "console=ttyS0", "net.ifnames=0", "mitigations=off", "quiet"]
    command = ["qemu-system-x86_64", *acceleration(image), "-smp", str(cpus()), "-m", "3G"]
    command += ["-nodefaults", "-display", "none", "-serial", f"file:{console}"]
    command += ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img")]
    command += ["-append", " ".join(kernel), "-device", "virtio-rng-pci"]
    disk = f"file={image / 'disk.img'},if=virtio,format=raw,snapshot=on,cache=unsafe"
    command += ["-drive", disk, "-virtfs"]
    command += [f"local,path={repository},mount_tag=repo,security_model=none,readonly=on"]
    command += ["-chardev", f"socket,id=agent,path={folder / 'agent.sock'},server=on,wait=off"]
    command += [
        "-device",
        "virtio-serial-pci",
        "-device",
        "virtserialport,chardev=agent,name=lb-xdp",
    ]
    for card in cards:
        command += card.arguments()
    return command


def acceleration(image: Path) -> list[str]:
    """Return QEMU's options: KVM where a kernel really starts with it, else emulation.

    A device file proves nothing: in some clouds /dev/kvm opens and guests abort.
    """
    kvm = ["-accel", "kvm", "-cpu", "host"]
    if os.access("/dev/kvm", os.R_OK | os.W_OK) and _starts(image, kvm):
        return kvm
    return ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"]


def _starts(image: Path, options: Sequence[str]) -> bool:
    """Start the kernel without a disk: it has to say its name, and panic for want of a root."""
    command = ["qemu-system-x86_64", *options, "-m", "512", "-nodefaults", "-display", "none"]
    command += ["-no-reboot", "-serial", "stdio", "-kernel", str(image / "vmlinuz")]
    try:
        done = subprocess.run(
            [*command, "-append", "console=ttyS0 panic=-1"],
            capture_output=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and b"Linux version" in done.stdout
