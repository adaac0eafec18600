"""Nodes as network namespaces: they reach each other and the machine, until a cable is pulled."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from tests.e2e.cluster.network import Network, network

ANSWER = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Network]:
    with network(2) as made:
        yield made


def test_nodes_reach_each_other_and_the_machine(nodes: Network):
    one, two = nodes.nodes
    for target in (two.address, nodes.address):
        assert one.run("ping", "-c1", "-W2", target).returncode == 0, target


def test_a_node_has_its_own_loopback(nodes: Network):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        refused = nodes.nodes[0].run("python3", "-c", ANSWER, "127.0.0.1", port)
        assert "ConnectionRefusedError" in refused.stderr


def test_a_server_on_the_machine_answers_a_node(nodes: Network):
    with socket.create_server((nodes.address, 0)) as server:
        port = str(server.getsockname()[1])
        answered = nodes.nodes[0].run("python3", "-c", ANSWER, nodes.address, port)
        assert answered.returncode == 0, answered.stderr


def test_a_node_that_is_cut_off_answers_again_when_it_joins(nodes: Network):
    one, two = nodes.nodes
    two.cut()
    assert one.run("ping", "-c1", "-W1", two.address).returncode != 0
    two.join()
    assert one.run("ping", "-c3", "-W2", two.address).returncode == 0


def test_nothing_is_left_of_a_network():
    with network(1) as made:
        process = subprocess.Popen(made.nodes[0].command("cat"), stdin=subprocess.PIPE)
    assert process.wait(5) == -9
    for words in (["netns"], ["link"], ["addr"]):
        said = subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
        assert made.nodes[0].name not in said
        assert made.nodes[0].link not in said
        assert made.address not in said
