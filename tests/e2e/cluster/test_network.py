"""Nodes as network namespaces: they reach each other and the machine, until a cable is pulled."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.e2e.cluster.network import Network, NetworkNode, network
from tests.integration.daemon_process import poll

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        server.accept()[0].close()
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Network]:
    with network(2) as made:
        yield made


@contextlib.contextmanager
def listening(node: NetworkNode) -> Iterator[str]:
    """A server on a node; its port."""
    command = node.command(sys.executable, "-c", LISTEN, node.address)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def connect(node: NetworkNode, address: str, port: str) -> subprocess.CompletedProcess[str]:
    return node.run(sys.executable, "-c", CONNECT, address, port)


def test_a_node_has_its_own_loopback(nodes: Network):
    with socket.create_server(("127.0.0.1", 0)) as server:
        refused = connect(nodes.nodes[0], "127.0.0.1", str(server.getsockname()[1]))
    assert "ConnectionRefusedError" in refused.stderr


def test_a_server_on_the_machine_answers_a_node(nodes: Network):
    with socket.create_server((nodes.address, 0)) as server:
        answered = connect(nodes.nodes[0], nodes.address, str(server.getsockname()[1]))
    assert answered.returncode == 0, answered.stderr


def test_nodes_reach_each_other_until_one_is_cut_off_and_when_it_is_back(nodes: Network):
    one, two = nodes.nodes
    with listening(two) as port:
        assert connect(one, two.address, port).returncode == 0
        two.cut()
        assert connect(one, two.address, port).returncode != 0
        two.join()
        poll(lambda: connect(one, two.address, port).returncode == 0, what="did not come back")


def test_nothing_is_left_of_a_network():
    with network(1) as made:
        process = subprocess.Popen(made.nodes[0].command("tail", "-f", "/dev/null"))
    assert process.wait(5) == -9
    for words in (["netns"], ["link"], ["addr"]):
        said = subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
        assert made.nodes[0].name not in said
        assert made.nodes[0].link not in said
        # Its addresses may be another network's by now.
        assert not re.search(rf"\b{made.bridge}\b", said)
