"""The web page of a whole service: its link, its port, its end."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest
from tests.integration.daemon_process import ServiceProcess, running

from shorthorn.commands.service import parse_web_listen

pytestmark = [pytest.mark.root, pytest.mark.xfs]


def printed_link(service: ServiceProcess) -> str:
    found = re.findall(
        r"web page: (http://127\.0\.0\.1:\d+/login\?once=\S+)", service.log.read_text()
    )
    assert found
    return str(found[-1])


def test_the_link_signs_in_and_port_and_session_survive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service, httpx2.Client(trust_env=False, timeout=60) as http:
        link = printed_link(service)
        base = link.partition("/login")[0]
        assert http.get(link).status_code == 200
        assert http.get(f"{base}/images").status_code == 200
        assert http.get(link).status_code == 303
        assert httpx2.get(link, trust_env=False, timeout=60).status_code == 403
        metrics = http.get(f"{base}/metrics").text
        assert "shorthorn_pool_capacity_bytes" in metrics
        for direction in ("upload", "download"):
            assert f'shorthorn_image_bytes_total{{direction="{direction}"}} 0.0' in metrics
        assert http.get(f"{base}/readyz").text == "ok\n"

        again = service.run("login")
        assert again.returncode == 0
        with httpx2.Client(trust_env=False, timeout=60) as other:
            assert other.get(again.stdout.strip()).status_code == 200

        assert service.stop() == 0
        service.start()
        assert printed_link(service).partition("/login")[0] == base
        assert http.get(f"{base}/images").status_code == 200
        for name in ("web.key", "web.url"):
            assert (service.data_dir / name).stat().st_mode & 0o777 == 0o600


def test_login_without_a_service_says_what_to_do(tmp_path: Path) -> None:
    answer = ServiceProcess(tmp_path / "nothing").run("login")
    assert answer.returncode == 1
    assert "shorthorn up" in answer.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", ("127.0.0.1", None)),
        ("8080", ("127.0.0.1", 8080)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_where_the_page_listens_is_read(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_web_listen(text) == expected
