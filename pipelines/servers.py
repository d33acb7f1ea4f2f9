"""Prefect servers: starting one on this machine, finding it again, and refusing one that anybody may command."""

import atexit
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


def have_server() -> str:
    """Address of a server for this process's runs: the one that is set or was found, else one of its own.

    Prefect would start one as well, but leaves it running when this process is terminated.
    """
    url = find_server()
    if url is None:
        groups = ProcessGroups()
        url = _started("127.0.0.1", _free_port(), groups)
        # What is registered first is called last: Prefect's threads hand in what they still hold before that.
        atexit.register(groups.stop, "the run is over")
        point_client_at(url)
    return url


def find_server(*, needed: bool = False) -> str | None:
    """Address of the server to talk to, which Prefect's client then does.

    That of Prefect's settings (`PREFECT_API_URL`, in the environment or a profile), else the one that
    `python -m pipelines ui` started here, else None.

    Args:
        needed: refuse to go without one.

    Raises:
        ValueError: there is none, and one is needed.
    """
    quieten(os.environ)
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url or _noted_url()
    if url:
        point_client_at(url)
    elif needed:
        raise ValueError(
            "expected a Prefect server, found none; start one with `python -m pipelines ui`, or set PREFECT_API_URL"
        )
    return url


def point_client_at(api_url: str) -> None:
    """Have Prefect's client, and processes started from here, talk to a server."""
    from prefect.context import refresh_global_settings_context

    os.environ["PREFECT_API_URL"] = api_url
    refresh_global_settings_context()


def quieten(environment: "os._Environ[str] | dict[str, str]") -> None:
    """Keep Prefect from reporting home, unless somebody chose otherwise."""
    environment.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    environment.setdefault("DO_NOT_TRACK", "1")


def _noted_url() -> str | None:
    try:
        url = str(json.loads(SERVER_NOTE.read_text(encoding="utf-8"))["api_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Where nobody listens, that is known at once; a server that is busy may take its time.
    return url if answers(url, timeout_s=10.0) else None


def answers(api_url: str, timeout_s: float = 2.0) -> bool:
    """Whether a Prefect server is there and well."""
    try:
        # By what it says: pages of other programs on the same port answer as well.
        return httpx.get(f"{api_url}/health", timeout=timeout_s).text == "true"
    except httpx.HTTPError:
        return False


def start_server(host: str, port: int, groups: ProcessGroups) -> str:
    """Start a server with its embedded database, or find it running, for all commands here; gives its API's address.

    Args:
        host: address to listen on.
        port: port to listen on.
        groups: where its process is entered.

    Raises:
        ValueError: it would be open to the network without authentication, or it doesn't start.
    """
    refuse_open_host(host)
    api_url = _started(host, port, groups)
    point_client_at(api_url)
    write_json(SERVER_NOTE, {"api_url": api_url})
    return api_url


def _started(host: str, port: int, groups: ProcessGroups) -> str:
    quieten(os.environ)
    reachable = host if host not in {"0.0.0.0", "::"} else "127.0.0.1"  # noqa: S104 -- compared, not bound
    api_url = f"http://{bracketed(reachable)}:{port}/api"
    if not answers(api_url):
        SERVER_LOG.parent.mkdir(parents=True, exist_ok=True)
        with SERVER_LOG.open("ab") as log:
            words = ["server", "start", "--host", host, "--port", str(port)]
            # Without this its pages look for their data at port 4200, wherever the server listens.
            process = groups.start("prefect", words, environment={"PREFECT_SERVER_UI_API_URL": "/api"}, output=log)
        _await(process, api_url)
    return api_url


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    urls = [f"{parts.scheme}://{bracketed(each)}:{port}{parts.path}" for each in hosts]
    return [url for url in urls if _lets_anybody_in(url)]


def bracketed(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


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
