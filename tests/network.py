"""Hosts of a test: network namespaces on a bridge, which can be cut off from each other, not from the test."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import missing

_NETWORK = ipaddress.ip_network("10.77.0.0/24")
_TEST = str(_NETWORK[254])  # where the test's own packets come from
_BRIDGE = "omnibr0"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A network of its own, in which server processes run."""

    def __init__(self, number: int) -> None:
        self.address = str(_NETWORK[number])
        self._name, self._link = f"omnihost{number}", f"omniv{number}"
        self._processes: list[subprocess.Popen[bytes]] = []
        _ip("netns", "add", self._name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        _ip("link", "set", self._link, "master", _BRIDGE, "up")
        _ip("-n", self._name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            _ip("-n", self._name, "link", "set", link, "up")
        subprocess.run(["tc", "qdisc", "add", "dev", self._link, "clsact"], check=True)

    def run(self, directory: Path, *command: str) -> None:
        with open(directory / "log", "ab") as log:
            words = ["ip", "netns", "exec", self._name, *command]
            self._processes.append(subprocess.Popen(words, cwd=directory, stdout=log, stderr=log))

    def cut_off(self, others: list[Host], *, from_all: bool = False) -> None:
        """Nothing passes between this host and the others, and with `from_all` the test: who stays connected hears nothing."""
        addresses = [one.address for one in others] + ([_TEST] if from_all else [])
        for way, offset in (("ingress", 30), ("egress", 26)):  # of what the host sends, and of what is sent to it
            tests = [
                f"21 {len(addresses) - index} 0 {int(ipaddress.ip_address(one))}" for index, one in enumerate(addresses)
            ]
            # Load the protocol; is it IP? Load the other address; is it one of these? Pass, or drop.
            program = [
                "40 0 0 12",
                f"21 0 {len(addresses) + 1} 2048",
                f"32 0 0 {offset}",
                *tests,
                "6 0 0 4294967295",
                "6 0 0 2",
            ]
            bytecode = ",".join([str(len(program)), *program])
            filter_ = ["tc", "filter", "add", "dev", self._link, way, "bpf", "da", "bytecode", bytecode]
            subprocess.run(filter_, check=True, capture_output=True)

    def join(self) -> None:
        for way in ("ingress", "egress"):
            subprocess.run(["tc", "filter", "del", "dev", self._link, way], check=False, capture_output=True)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many of them; one test at a time has them."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces are for root")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            missing(tool, "apt-get install iproute2")
    with open(Path(tempfile.gettempdir()) / "omnistate-hosts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _tear_down(count)
        try:
            _ip("link", "add", _BRIDGE, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine has no bridges: {error.stderr.decode().strip()}")
        made: list[Host] = []
        try:
            _ip("addr", "add", f"{_TEST}/24", "dev", _BRIDGE)
            _ip("link", "set", _BRIDGE, "up")
            made.extend(Host(number) for number in range(1, count + 1))
            yield made
        finally:
            for host in made:
                host.close()
            _tear_down(count)


def _tear_down(count: int) -> None:
    """What a run that was killed has left, too."""
    names = [("link", _BRIDGE)]
    for number in range(1, count + 1):
        names += [("link", f"omniv{number}"), ("netns", f"omnihost{number}")]
    for kind, name in names:
        subprocess.run(["ip", kind, "del", name], check=False, capture_output=True)


def until(condition: str, *command: str, within: float = 15) -> None:
    """Until a command says it."""
    deadline = time.monotonic() + within
    said = ""
    while condition not in said:
        assert time.monotonic() < deadline, (command, said)
        time.sleep(0.05)
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
