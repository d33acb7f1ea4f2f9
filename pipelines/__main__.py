"""Command line of the pipeline: `python -m pipelines check | params | deps | targets | results`."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from stages.contracts.closure import code_files
from stages.contracts.stage import PARAMS_FILE, parse_section, read_params


def check(_: argparse.Namespace) -> int:
    """Check params.yaml and dvc.yaml against the code; print each problem in one line."""
    from pipelines.graph import code_problems, read_graph
    from pipelines.params import Params

    parse_section(Params, read_params(""), where="")
    problems = code_problems(read_graph())
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


def deps(arguments: argparse.Namespace) -> int:
    """Print the source files that a module runs, as lines for `deps` in dvc.yaml."""
    for path in code_files(arguments.modules):
        print(f"      - {path.as_posix()}")
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


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": check,
    "params": params,
    "deps": deps,
    "results": results,
    "targets": targets,
}


def main() -> int:
    """Run the command named on the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.__doc__, description=command.__doc__)
    target = f"file to write it to, where editors of {PARAMS_FILE} find it"
    subparsers.choices["params"].add_argument("--write", type=Path, metavar="FILE", help=target)
    subparsers.choices["deps"].add_argument("modules", nargs="+", metavar="MODULE")
    arguments = parser.parse_args()
    try:
        return COMMANDS[arguments.command](arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
