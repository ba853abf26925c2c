"""Command `mixpanel-async emulator`, run in a child process."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from forked_python import ForkedPython, popen, run
from typer.testing import CliRunner

from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator

RUN = [sys.executable, "-W", "error", "-c", "from mixpanel_async.cli import main; main()", "emulator", "--quiet"]
EVENT = {"event": "Viewed", "properties": {"token": "t", "distinct_id": "u"}}


@contextmanager
def running(*arguments: str) -> Iterator[tuple[ForkedPython, str]]:
    """Run the command. Yields the process and the address that it printed."""
    with popen([*RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().removesuffix("\n")
        finally:
            if process.poll() is None:
                process.kill()


def stop(process: ForkedPython, number: signal.Signals) -> None:
    process.send_signal(number)
    output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, "", "")


def run_refused(*arguments: str) -> tuple[int, str]:
    """Run arguments that are refused at once. Return the exit status and the error output."""
    result = run([*RUN, *arguments], capture_output=True, text=True, timeout=25)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False)


def post(url: str, content: object, user: str = "t", password: str = "") -> httpx.Response:
    return httpx.post(url, json=content, auth=(user, password), trust_env=False)


def test_emulator_prints_its_address_and_serves_until_sigterm() -> None:
    with running() as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert post(f"{url}/track", [EVENT]).text == "1"
        assert get(f"{url}/_emulator/stats").json()["id_merge"] == "simplified"
        assert get(url).headers["content-type"] == "text/html; charset=utf-8"
        with httpx.stream("GET", f"{url}/_emulator/stream", trust_env=False) as stream:
            assert next(stream.iter_lines()).startswith("retry")
            stop(process, signal.SIGTERM)


def test_every_option_takes_effect_and_control_c_stops_the_server(tmp_path: Path) -> None:
    options = (
        "--port=0 --host=localhost --id-merge=original --token=tok --secret=sec --service-account=user:pass:word:12 "
        f"--cluster-limit=2 --data-dir={tmp_path / 'data'}"
    ).split()
    anon = "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9"
    with running(*options) as (process, url):
        for number in range(2):
            properties = {"token": "tok", "$identified_id": "u", "$anon_id": f"{anon}{number}"}
            post(f"{url}/track", [{"event": "$identify", "properties": properties}])
        log = get(f"{url}/_emulator/identity-log").json()
        assert [entry["$failure_reason"] for entry in log] == [None, "errManyIDs"]
        assert post(f"{url}/import?strict=1", [], "nobody").status_code == 401
        assert post(f"{url}/import?strict=1", [], "sec").status_code == 200
        assert post(f"{url}/import?strict=1&project_id=12", [], "user", "pass:word").status_code == 200
        stop(process, signal.SIGINT)
    with running(*options) as (process, url):
        assert (
            get(
                f"{url}/_emulator/cluster",
            ).status_code
            == 400
        )
        assert get(f"{url}/_emulator/cluster?distinct_id=u").json() == [f"{anon}0", "u"]
        stop(process, signal.SIGTERM)


def test_help_fills_its_lines() -> None:
    output = CliRunner().invoke(app, ["emulator", "--help"], terminal_width=100).stdout
    paragraph = output.partition("The first line")[2].partition("Options:")[0].strip().splitlines()
    # A line ends early only if the next word does not fit.
    assert all(len(line.strip()) > 80 for line in paragraph[:-1])


def test_port_in_use_is_reported_in_one_line() -> None:
    with Emulator().serve() as server:
        port = server.url.rpartition(":")[2]
        status, errors = run_refused("--port", port)
    assert status == 1
    assert errors.count("\n") == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in errors


def test_non_loopback_address_requires_allow_remote_and_prints_a_warning() -> None:
    status, errors = run_refused("--host", "0.0.0.0")
    assert status == 1
    assert errors.count("\n") == 1
    assert "--allow-remote" in errors
    with running("--host", "0.0.0.0", "--allow-remote") as (process, url):
        port = url.rpartition(":")[2]
        assert get(f"http://127.0.0.1:{port}/_emulator/events").json() == []
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output) == (0, "")
    assert errors.startswith("warning: other machines can reach this emulator")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("account", ["user", "user:pass", "::", "user::12", ":pass:12"])
def test_malformed_service_account_is_refused(account: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    result = CliRunner().invoke(app, ["emulator", "--service-account", account])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "USER:SECRET:PROJECT" in result.stderr


def test_unusable_data_directory_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, errors = run_refused("--data-dir", str(tmp_path / "file"))
    assert (status, errors.count("\n")) == (1, 1)
    assert "data directory" in errors


@pytest.mark.parametrize("options", [["--port", "65536"], ["--id-merge", "magic"], ["--cluster-limit", "1"]])
def test_options_out_of_bounds_are_refused(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["emulator", *options])
    assert (result.exit_code, result.stdout) == (2, "")


def test_allow_origin_can_be_repeated() -> None:
    origins = ["https://app.example.com", "http://192.168.1.20:5173"]
    with running("--allow-origin", origins[0], "--allow-origin", origins[1]) as (_, url):
        for origin in origins:
            response = httpx.post(f"{url}/track", json=[EVENT], headers={"origin": origin}, trust_env=False)
            assert response.headers["access-control-allow-origin"] == origin
        answer = httpx.post(
            f"{url}/track", json=[EVENT], headers={"origin": "https://other.example.com"}, trust_env=False
        )
    assert (answer.text, answer.headers.get("access-control-allow-origin")) == ("1", None)


def test_malformed_allowed_origin_is_refused(tmp_path: Path) -> None:
    origin = "https://app.example.com/path"
    status, errors = run_refused("--allow-origin", origin, "--data-dir", str(tmp_path))
    assert status == 1
    assert errors.startswith(
        "mixpanel-async emulator: invalid --allow-origin: an allowed origin is a scheme and a host"
    )
    assert repr(origin) in errors


def test_tls_option_serves_https_and_prints_what_clients_need(tmp_path: Path) -> None:
    folder = tmp_path / "my tls"
    with running("--tls", "--tls-dir", str(folder), "--allow-host", "emulator") as (process, url):
        assert process.stdout is not None
        https_url, node, python = (process.stdout.readline().removesuffix("\n") for _ in range(3))
        file = folder / "ca.pem"
        assert https_url == f"https://localhost:{url.rpartition(':')[2]}"
        assert node == f"export NODE_EXTRA_CA_CERTS='{file}'  # Node.js"
        assert python == f"export SSL_CERT_FILE='{file}' REQUESTS_CA_BUNDLE='{file}'  # Python"
        context = ssl.create_default_context(cafile=file)
        for address in (url, https_url):
            response = httpx.post(
                f"{address}/track", json=[EVENT], headers={"host": "emulator"}, verify=context, trust_env=False
            )
            assert response.text == "1"
        stop(process, signal.SIGTERM)


def test_certificate_from_files_is_served(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    both = str(tmp_path / "both.pem")
    with running("--tls-cert", both, "--tls-key", both) as (process, _):
        assert process.stdout is not None
        https_url = process.stdout.readline().removesuffix("\n")
        context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        assert httpx.get(f"{https_url}/_emulator/stats", verify=context, trust_env=False).status_code == 200
        stop(process, signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key must be given together"),
        (["--tls", "--tls-key", "a.pem"], "--tls-cert and --tls-key must be given together"),
        (["--tls-dir", "folder"], "add --tls"),
        (["--tls-cert", "a", "--tls-key", "b", "--tls-dir", "c"], "cannot be used with --tls-cert"),
        (["--tls", "--tls-dir", ""], "must not be empty"),
        (["--tls-cert", "/missing.pem", "--tls-key", "/missing.pem"], "cannot use /missing.pem: No such file"),
        (["--allow-host", "a b"], "--allow-host must be host names such as 'emulator' or 'mixpanel.test', not 'a b'"),
    ],
)
def test_unusable_tls_options_are_reported_in_one_line(
    options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    result = CliRunner().invoke(app, ["emulator", *options])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert words in result.stderr
