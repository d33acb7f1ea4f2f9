"""Serves the flow: nightly, and early when the data changed; and the pages to look at it."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipelines.processes import ProcessGroups
from pipelines.publishing import check_branch
from pipelines.servers import find_server, openings, start_server

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

NIGHTLY = "nightly"
WORKSPACE_TAG = "workspace:"
"""Begins the tag of a deployment that says in which folder its runs work."""


def serve(
    *, name: str, cron: str | None, on_data_update: bool, notify: str | None, jobs: int, publish: str | None
) -> int:
    """Register the nightly run with the server and start its runs here, until interrupted.

    Args:
        name: of the deployment.
        cron: when it runs; None leaves it to events and people.
        on_data_update: start it as well when `python -m pipelines data-updated` says that there are new rows.
        notify: block that messages go through, as "slack-webhook/ops".
        jobs: stages that may run at a time.
        publish: branch that runs commit and push dvc.lock on; None commits nothing.

    Raises:
        ValueError: there is no server, or it is open to the network without authentication, or another workspace has a
            deployment of that name there, or another branch is checked out.
    """
    if publish:
        check_branch(publish)
    api_url = find_server(needed=True)
    refuse_openings(str(api_url))
    _serve_here(name=name, cron=cron, on_data_update=on_data_update, notify=notify, jobs=jobs, publish=publish)
    return 0


def ui(*, host: str, port: int, cron: str, notify: str | None, jobs: int) -> int:
    """Start a server on this machine, serve the nightly run, print where its pages are; until interrupted.

    Args:
        host: address to listen on.
        port: port to listen on.
        cron: when the nightly run starts.
        notify: block that messages go through.
        jobs: stages that may run at a time.

    Raises:
        ValueError: the server would be open to the network without authentication, or doesn't start.
    """
    groups = ProcessGroups()
    try:
        api_url = start_server(host, port, groups)
        # One that ran already may listen elsewhere as well.
        refuse_openings(api_url)
        print(f"Prefect's pages: {api_url.removesuffix('/api')}  (Ctrl-C ends the server and what it runs)", flush=True)
        _serve_here(name=NIGHTLY, cron=cron, on_data_update=True, notify=notify, jobs=jobs, publish=None)
    finally:
        groups.stop("the server was ended")
    return 0


def refuse_openings(api_url: str) -> None:
    """Refuse a server that lets anybody on the network start runs here.

    Raises:
        ValueError: it does; says at which address.
    """
    found = openings(api_url)
    if found:
        raise ValueError(
            f"the Prefect server answers anybody at {', '.join(found)}, who could run commands here; let it listen on "
            "127.0.0.1, or set PREFECT_SERVER_API_AUTH_STRING there and PREFECT_API_AUTH_STRING here"
        )


def nightly_deployment(
    *, name: str, cron: str | None, on_data_update: bool, jobs: int, publish: str | None
) -> "RunnerDeployment":
    """The deployment that brings everything up to date.

    Args:
        name: of the deployment.
        cron: when; None leaves it to events and people.
        on_data_update: whether new data starts it early.
        jobs: stages that may run at a time.
        publish: branch that runs commit and push dvc.lock on; None commits nothing.
    """
    from prefect.events import DeploymentEventTrigger
    from prefect.types.entrypoint import EntrypointType

    from pipelines.events import DATA_UPDATED, FEEDBACK
    from pipelines.flows import pipeline

    trigger = DeploymentEventTrigger(
        name="plumbline: new feedback starts the nightly run early",
        expect={DATA_UPDATED},
        match={"prefect.resource.id": FEEDBACK},
    )
    deployment = pipeline.to_deployment(
        name,
        cron=cron,
        triggers=[trigger] if on_data_update else [],
        parameters={"jobs": jobs, "publish": publish},
        description="Brings the methods in `run.methods` of params.yaml up to date; what didn't change is not run.",
        tags=[f"{WORKSPACE_TAG}{Path.cwd()}"],
        # By module, so that what the flow keeps track of is imported and never pickled.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast("RunnerDeployment", deployment)


def _serve_here(
    *, name: str, cron: str | None, on_data_update: bool, notify: str | None, jobs: int, publish: str | None
) -> None:
    from prefect import serve as serve_deployments

    from pipelines.automations import register_automations

    refuse_taken_name(name)
    pass_over_missed(name)
    for automation in register_automations(notify) if notify else []:
        print(f"automation  {automation}", flush=True)
    if not notify:
        print("nobody is told of failures; --notify slack-webhook/NAME sends them through a Prefect block", flush=True)
    deployment = nightly_deployment(name=name, cron=cron, on_data_update=on_data_update, jobs=jobs, publish=publish)
    # One at a time: a second would only wait for the workspace. And the schedule stays when this process ends: in a
    # rolling restart the next one has it already, and would never run again.
    serve_deployments(deployment, limit=1, print_starting_message=False, pause_on_shutdown=False)


def pass_over_missed(name: str) -> None:
    """Leave one of the runs of a deployment that were planned while nobody served it."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from pipelines.flows import pipeline
    from pipelines.missed_runs import cancel_overdue

    with get_client(sync_client=True) as client:
        try:
            deployment_id = client.read_deployment_by_name(f"{pipeline.name}/{name}").id
        except ObjectNotFound:
            return
        missed = cancel_overdue(client, deployment_id, keep_newest=True)
    if missed:
        print(f"{missed} runs were missed while nobody served {name}; the newest of them is run", flush=True)


def refuse_taken_name(name: str) -> None:
    """Refuse the name of a deployment whose runs work in another folder that still exists.

    Raises:
        ValueError: it is taken; says by which folder.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from pipelines.flows import pipeline

    try:
        with get_client(sync_client=True) as client:
            tags = client.read_deployment_by_name(f"{pipeline.name}/{name}").tags
    except ObjectNotFound:
        return
    folders = [Path(tag.removeprefix(WORKSPACE_TAG)) for tag in tags if tag.startswith(WORKSPACE_TAG)]
    for folder in folders:
        if folder != Path.cwd() and folder.is_dir():
            raise ValueError(
                f"{folder} already serves its runs as {pipeline.name}/{name} on this server; give those of this "
                "workspace a name of their own: python -m pipelines serve --name NAME"
            )


def tell_data_update(source: str) -> int:
    """Tell the server that the feedback log has new rows.

    Args:
        source: who says so, or what is new.

    Raises:
        ValueError: there is no server to tell.
    """
    api_url = find_server(needed=True)
    from pipelines import events

    events.tell_data_update(source)
    print(f"told {api_url} that there is new feedback{f': {source}' if source else ''}")
    return 0
