"""The web page of a cluster's controllers: tokens sign in, and replicas share the sessions' key."""

from __future__ import annotations

import functools
from pathlib import Path

import httpx2
import pytest
import yaml
from tests.integration.cluster import ApiProcess, ClusterProgram, free_port
from tests.integration.daemon_process import poll

pytestmark = [pytest.mark.root]


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def test_a_token_signs_in_to_every_replica(tmp_path: Path) -> None:
    server = ApiProcess(tmp_path)
    server.start()
    kubeconfig = server.kubeconfig
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    replicas = [
        ClusterProgram(
            f"controller-{port}",
            tmp_path,
            kubeconfig,
            *("controller", "--web-listen", f"127.0.0.1:{port}"),
        )
        for port in ports
    ]
    try:
        for replica, url in zip(replicas, urls, strict=True):
            replica.start()
            poll(functools.partial(answers, url), what=replica.said())
        token = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"]
        with httpx2.Client(trust_env=False, timeout=60) as http:
            page = http.get(f"{urls[0]}/login")
            assert "one-time link" not in page.text
            assert http.post(f"{urls[0]}/login", data={"token": "wrong"}).status_code == 403
            assert http.post(f"{urls[0]}/login", data={"token": token}).status_code == 200
            for url in urls:
                assert http.get(f"{url}/images").status_code == 200
                assert http.get(f"{url}/metrics").status_code == 404
        for direction in ("upload", "download"):
            series = f'shorthorn_image_bytes_total{{direction="{direction}"}} 0.0'
            assert series in replicas[0].get("/metrics")[1]
        assert [replica.stop() for replica in replicas] == [0, 0]
    finally:
        for replica in replicas:
            if replica.process is not None and replica.process.poll() is None:
                replica.kill()
        server.stop()
