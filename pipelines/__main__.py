"""Command line of the pipeline: `python -m pipelines COMMAND`; `--help` names the commands."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines.processes import DEFAULT_JOBS
from stages.contracts.stage import PARAMS_FILE, parse_section, read_params


def check(_: argparse.Namespace) -> int:
    """Check params.yaml and dvc.yaml against the code; print each problem in one line."""
    from pipelines.checks import graph_problems
    from pipelines.graph import read_graph, targets_of
    from pipelines.leftovers import choice_problems, missing_inputs
    from pipelines.params import load_params

    params = load_params()
    nodes = read_graph()
    targets_of(params.run.methods, nodes)
    problems = [*graph_problems(nodes, params), *missing_inputs(params, nodes), *choice_problems(params, nodes)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("params.yaml and dvc.yaml agree with the code")
    return 1 if problems else 0


def params(arguments: argparse.Namespace) -> int:
    """Print the JSON schema of params.yaml: every key, what it means and its default."""
    from pipelines.params import schema

    text = json.dumps(schema(), indent=2, sort_keys=True) + "\n"
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def targets(_: argparse.Namespace) -> int:
    """Print the last stages of the methods that section `run` of params.yaml names, for `dvc repro`."""
    from pipelines.graph import read_graph, targets_of
    from pipelines.params import RunParams

    run = parse_section(RunParams, read_params("run"), where="run")
    print(" ".join(targets_of(run.methods, read_graph())))
    return 0


def results(_: argparse.Namespace) -> int:
    """Print what the last run came to: policy against start, with intervals."""
    from pipelines.results import results_text

    print(results_text())
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Bring methods or stages up to date, as a Prefect flow; needs no server."""
    from pipelines.running import run_flow

    return run_flow(
        arguments.targets,
        overrides=arguments.set,
        force=arguments.force,
        jobs=arguments.jobs,
        publish=arguments.publish,
    )


def sweep(arguments: argparse.Namespace) -> int:
    """Try several values of a parameter, each as an experiment of DVC's; what they share is computed once."""
    from pipelines.running import run_sweep

    return run_sweep(arguments.targets, overrides=arguments.set, jobs=arguments.jobs)


def status(arguments: argparse.Namespace) -> int:
    """Print what the next run would do, and why."""
    from pipelines.status import status_text

    print(status_text(arguments.targets))
    return 0


def doctor(_: argparse.Namespace) -> int:
    """Look at environment, graph, server, devices, disk, model and data; fail if a run would."""
    from pipelines.doctor import examine, findings_text

    findings = examine()
    print(findings_text(findings))
    return 1 if any(finding.verdict == "FAIL" for finding in findings) else 0


def describe(arguments: argparse.Namespace) -> int:
    """Print what a chat template makes of a row: prompt, what is learned, where it ends, and the checks."""
    from pipelines.describing import describe_template

    return describe_template(arguments.template, arguments.row)


def adopt(arguments: argparse.Namespace) -> int:
    """Make params.yaml and dvc.yaml those of your own log and model; says first what it understood of them."""
    from pipelines.adoption.adopting import adopt as adopt_log

    return adopt_log(
        arguments.log,
        arguments.model,
        overrides=arguments.set,
        methods=arguments.methods.split(",") if arguments.methods else (),
        encoder=arguments.encoder,
        dry_run=arguments.dry_run,
        force=arguments.force,
    )


def serve(arguments: argparse.Namespace) -> int:
    """Start the flow on a schedule, and early when the data changed, until interrupted; needs a server."""
    from pipelines.serving import serve as serve_flow

    return serve_flow(
        name=arguments.name,
        cron=arguments.cron,
        on_data_update=arguments.on_data_update,
        notify=arguments.notify,
        jobs=arguments.jobs,
        publish=arguments.publish,
    )


def ui(arguments: argparse.Namespace) -> int:
    """Start a server on this machine, serve the flow nightly and on new data, and print where its pages are."""
    from pipelines.serving import ui as serve_with_pages

    return serve_with_pages(
        host=arguments.host,
        port=arguments.port,
        cron=arguments.cron,
        notify=arguments.notify,
        jobs=arguments.jobs,
    )


def data_updated(arguments: argparse.Namespace) -> int:
    """Tell the server that the feedback log has new rows, so that the nightly run starts early."""
    from pipelines.serving import tell_data_update

    return tell_data_update(arguments.source)


def convert(arguments: argparse.Namespace) -> int:
    """Write the weights of a model folder that only a pickle holds as safetensors beside it; no code of it is run."""
    from stages.models.conversion import convert as convert_folder

    for file in convert_folder(arguments.folder):
        print(f"wrote {file}")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "adopt": adopt,
    "check": check,
    "params": params,
    "results": results,
    "targets": targets,
    "run": run,
    "sweep": sweep,
    "status": status,
    "doctor": doctor,
    "describe": describe,
    "serve": serve,
    "ui": ui,
    "data-updated": data_updated,
    "convert": convert,
}


def main() -> int:
    """Run the command named on the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.__doc__, description=command.__doc__)
    target = f"file to write it to, where editors of {PARAMS_FILE} find it"
    subparsers.choices["params"].add_argument("--write", type=Path, metavar="FILE", help=target)
    _add_describing_flags(subparsers.choices["describe"])
    _add_adopt_flags(subparsers.choices["adopt"])
    _add_run_flags(subparsers.choices["run"], subparsers.choices["sweep"])
    _add_serving_flags(subparsers.choices["serve"], subparsers.choices["ui"])
    subparsers.choices["status"].add_argument(
        "targets", nargs="*", metavar="METHOD|STAGE", help="what to look at, with all that it reads from; all if none"
    )
    subparsers.choices["data-updated"].add_argument("source", nargs="?", default="", help="what is new, or who says so")
    subparsers.choices["convert"].add_argument("folder", type=Path, help="folder with pytorch_model.bin or a like file")
    arguments = parser.parse_args()
    try:
        return COMMANDS[arguments.command](arguments)
    except Exception as error:
        if not _is_for_people(error):
            raise
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1


_PUBLISH = "commit dvc.lock on this branch, which is checked out, and push it to git's remote"


def _is_for_people(error: Exception) -> bool:
    """Whether an error says what a user can do something about: ours, and those of DVC if it was loaded."""
    dvc = sys.modules.get("dvc.exceptions")
    return isinstance(error, ValueError) or (dvc is not None and isinstance(error, dvc.DvcException))


def _jobs(text: str) -> int:
    """Value of --jobs."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return int(text)


def _add_describing_flags(describe: argparse.ArgumentParser) -> None:
    folder = "any folder with a tokenizer_config.json; the base model if not said"
    describe.add_argument("--template", type=Path, nargs="?", required=True, metavar="FOLDER", help=folder)
    row = "JSON or JSONL with a row as the log has it, the first of which is taken; a sample if not said"
    describe.add_argument("--row", type=Path, metavar="FILE", help=row)


def _add_adopt_flags(adopt: argparse.ArgumentParser) -> None:
    adopt.add_argument("log", help="the log: a file, or a folder of files")
    adopt.add_argument(
        "--model", required=True, metavar="FOLDER|REPOSITORY", help="the model to improve; owner/name[@COMMIT]"
    )
    adopt.add_argument("--methods", metavar="METHOD,...", help="what to train by; what fits the log best if not said")
    adopt.add_argument("--encoder", metavar="FOLDER|REPOSITORY@COMMIT", help="what embeds prompts")
    adopt.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"value that is to stand in {PARAMS_FILE}"
    )
    adopt.add_argument("--dry-run", action="store_true", help="print what was understood and chosen, and write nothing")
    adopt.add_argument("--force", action="store_true", help=f"write over a changed {PARAMS_FILE} or dvc.yaml")


def _add_serving_flags(serve: argparse.ArgumentParser, ui: argparse.ArgumentParser) -> None:
    serve.add_argument("--name", default="nightly", help="of the deployment, on a server of several workspaces")
    serve.add_argument("--cron", metavar="CRON", help='when, such as "0 3 * * *" for every night at three')
    serve.add_argument("--on-data-update", action="store_true", help="also when `data-updated` says so")
    serve.add_argument("--publish", metavar="BRANCH", help=_PUBLISH)
    ui.add_argument("--cron", metavar="CRON", default="0 3 * * *", help="when; every night at three if not said")
    ui.add_argument("--host", default="127.0.0.1", help="address that the server listens on")
    ui.add_argument("--port", type=int, default=4200, help="port that the server listens on")
    for parser in (serve, ui):
        parser.add_argument("--notify", metavar="BLOCK", help="Prefect block that tells of failures: slack-webhook/ops")
        parser.add_argument("-j", "--jobs", type=_jobs, default=DEFAULT_JOBS, metavar="N", help="stages at a time")


def _add_run_flags(run: argparse.ArgumentParser, sweep: argparse.ArgumentParser) -> None:
    values = "value to set in {file}; it stays set", "values to try: training.bco.beta=0.05,0.1; several are combined"
    for parser, meaning, what in ((run, values[0], "stages"), (sweep, values[1], "experiments")):
        parser.add_argument(
            "targets", nargs="*", metavar="METHOD|STAGE", help="what to bring up to date; run.methods if none"
        )
        parser.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help=meaning.format(file=PARAMS_FILE)
        )
        parser.add_argument("-j", "--jobs", type=_jobs, default=DEFAULT_JOBS, metavar="N", help=f"{what} at a time")
    run.add_argument("--publish", metavar="BRANCH", help=_PUBLISH)
    run.add_argument("--force", action="store_true", help="run what didn't change as well")


if __name__ == "__main__":
    raise SystemExit(main())
