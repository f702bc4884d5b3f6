"""`python -m flows demo` runs the pipeline here, `python -m flows check DATA` looks at data for it in seconds.

`python -m flows serve` opens the pages and takes deployment runs.
"""

import argparse
import signal
import sys

from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.presets import PRESETS
from flows.environment import set_up
from flows.run import run_here
from flows.servers import serve


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 a failure that one message explains, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for preset in PRESETS:
        run = commands.add_parser(preset, help=f"run the pipeline with the preset `{preset}`")
        run.add_argument("--data", nargs="*", default=[], metavar="PATH", help="folder or archive; several are mixed")
        run.add_argument("--param", action="append", default=[], metavar="FIELD=JSON", help="a field of RunConfig")
    check = commands.add_parser("check", help="what preparation would keep of data, and which budgets fit it")
    check.add_argument("data", nargs="+", metavar="DATA", help="folder or archive")
    check.add_argument("--preset", choices=PRESETS, default="demo", help="whose budgets and tokenizer are taken")
    check.add_argument("--param", action="append", default=[], metavar="FIELD=JSON", help="a field of RunConfig")
    commands.add_parser("serve", help="Prefect and MLflow on loopback, and a worker for deployment runs")
    chosen = parser.parse_args(arguments)
    set_up()
    try:
        if chosen.command == "serve":
            return serve()
        if chosen.command == "check":
            from flows.check_data import check_data

            return check_data(chosen.data, chosen.param, chosen.preset)
        return run_here(chosen.command, chosen.data, chosen.param)
    except AmvlError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next run goes on from the last finished stage and checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    for sign in (signal.SIGTERM, signal.SIGHUP):  # they end a run as Ctrl-C does: in order
        if signal.getsignal(sign) is signal.SIG_DFL:  # `nohup` has a hang-up ignored
            signal.signal(sign, signal.default_int_handler)
    sys.exit(main())
