"""`python -m flows demo` runs the pipeline here; `python -m flows serve` opens the pages and takes deployment runs."""

import argparse
import sys

from flows.environment import set_up


def main() -> int:
    """The exit code: 0 done, 1 a failure that one message explains, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for preset in ("demo", "paper"):
        run = commands.add_parser(preset, help=f"run the pipeline with the preset `{preset}`")
        run.add_argument("--data", nargs="*", default=[], metavar="PATH", help="folder or archive; several are mixed")
        run.add_argument("--param", action="append", default=[], metavar="FIELD=JSON", help="a field of RunConfig")
    commands.add_parser("serve", help="Prefect and MLflow on loopback, and a worker for deployment runs")
    arguments = parser.parse_args()
    set_up()
    if arguments.command == "serve":
        from flows.serve import serve

        return serve()
    from flows.run import run_here

    return run_here(arguments.command, arguments.data, arguments.param)


if __name__ == "__main__":
    sys.exit(main())
