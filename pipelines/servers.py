"""Prefect servers: starting one on this machine, finding it again, and refusing one that anybody may command."""

import ipaddress
import json
import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from pipelines.processes import ProcessGroups
from stages.contracts.files import write_json

SERVER_NOTE = Path(".cache/prefect/server.json")
"""Where `python -m pipelines ui` notes its address, so that other commands show their runs there."""
SERVER_LOG = Path(".cache/prefect/server.log")
START_TIMEOUT_S = 120.0


def prepare_client(*, needs_server: bool = False) -> str | None:
    """Decide which server Prefect talks to; gives its address. To be called before Prefect is imported.

    That of the environment (`PREFECT_API_URL`), else the one that `python -m pipelines ui` started here, else that of
    Prefect's profile, else None: a server for this process alone.

    Args:
        needs_server: refuse to go without one.

    Raises:
        ValueError: there is none, and one is needed.
    """
    quieten(os.environ)
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    # A busy machine takes longer than Prefect's own 20 s to lay out a new database.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(int(START_TIMEOUT_S)))
    noted = _noted_url()
    if "PREFECT_API_URL" not in os.environ and noted:
        # Prefect reads its settings once, when it is imported.
        os.environ["PREFECT_API_URL"] = noted
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if needs_server and url is None:
        raise ValueError(
            "expected a Prefect server, found none; start one with `python -m pipelines ui`, or set PREFECT_API_URL"
        )
    return url


def quieten(environment: "os._Environ[str] | dict[str, str]") -> None:
    """Keep Prefect from reporting home, unless somebody chose otherwise."""
    environment.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    environment.setdefault("DO_NOT_TRACK", "1")


def _noted_url() -> str | None:
    try:
        url = str(json.loads(SERVER_NOTE.read_text(encoding="utf-8"))["api_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if answers(url) else None


def answers(api_url: str, timeout_s: float = 2.0) -> bool:
    """Whether a Prefect server is there and well."""
    try:
        return httpx.get(f"{api_url}/health", timeout=timeout_s).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def start_server(host: str, port: int, groups: ProcessGroups) -> str:
    """Start a server with its embedded database, or find it running; gives the address of its API.

    To be called before Prefect is imported, whose client it sets to the server.

    Args:
        host: address to listen on.
        port: port to listen on.
        groups: where its process is entered.

    Raises:
        ValueError: it would be open to the network without authentication, or it doesn't start.
    """
    quieten(os.environ)
    reachable = host if host not in {"0.0.0.0", "::"} else "127.0.0.1"  # noqa: S104 -- compared, not bound
    api_url = os.environ["PREFECT_API_URL"] = f"http://{reachable}:{port}/api"
    refuse_open_host(host)
    if not answers(api_url):
        SERVER_LOG.parent.mkdir(parents=True, exist_ok=True)
        with SERVER_LOG.open("ab") as log:
            words = ["server", "start", "--host", host, "--port", str(port)]
            process = groups.start("prefect", words, output=log)
        _await(process, api_url)
    write_json(SERVER_NOTE, {"api_url": api_url})
    return api_url


def _await(process: subprocess.Popen[bytes], api_url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(api_url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ValueError(f"the Prefect server does not start; {SERVER_LOG} says why")
        time.sleep(0.3)


def refuse_open_host(host: str) -> None:
    """Refuse to listen where others can connect, unless the server asks who they are.

    Raises:
        ValueError: the host is no loopback address and no authentication is set.
    """
    from prefect.settings import get_current_settings

    if not _is_loopback(host) and not get_current_settings().server.api.auth_string:
        raise ValueError(
            f"a server on {host} lets everybody on the network run commands here; listen on 127.0.0.1, or set "
            "PREFECT_SERVER_API_AUTH_STRING=user:password there and PREFECT_API_AUTH_STRING for its clients"
        )


def openings(api_url: str) -> list[str]:
    """Addresses at which the server answers to anybody on the network.

    Args:
        api_url: address of its API.
    """
    parts = urlsplit(api_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    hosts = own_addresses() if _is_loopback(host) else [host]
    urls = [f"{parts.scheme}://{f'[{each}]' if ':' in each else each}:{port}{parts.path}" for each in hosts]
    return [url for url in urls if _lets_anybody_in(url)]


def _lets_anybody_in(api_url: str) -> bool:
    # Only health is answered without a password where one is set; this asks for what is protected.
    try:
        return httpx.get(f"{api_url}/admin/version", timeout=2.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def own_addresses() -> list[str]:
    """Addresses of this machine that others may reach it at."""
    found: dict[str, None] = {}
    for family, target in [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]:
        # Nothing is sent: connecting a datagram socket only chooses the address that it would be sent from.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))
                found[probe.getsockname()[0]] = None
            except OSError:
                continue
    with suppress(OSError):  # a machine whose own name has no address
        found.update(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)))
    return [address for address in found if not _is_loopback(address)]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
