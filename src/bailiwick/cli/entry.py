"""The program: its commands, and the one place where an error becomes a line on standard error and an exit status."""

import contextlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from bailiwick.cli import (
    command_control,
    command_hold,
    command_installation,
    command_record,
    command_run,
    command_show,
    command_start,
    command_workspace,
    terminal,
)
from bailiwick.cli.exits import Exit, Stop, of_error
from bailiwick.kernel.errors import BailiwickError

_HELP = """Runs any AI agent, unchanged, in a sealed sandbox whose only way out is a gateway that decides, records and can stop every action.

\b
  bailiwick init                          a starter configuration, valid as written
  bailiwick run deployer "Roll it out"    an agent of the configuration
  bailiwick run --observe -- python a.py  any command, sealed: what would be decided
  bailiwick holds                         what waits for a person
  bailiwick trace last                    what a run did, step by step

State is kept in --state DIR, in BAILIWICK_STATE, or in a directory of yours; every command takes --help. Exit statuses: 0 ok, 1 the agent failed,
2 usage, 3 configuration invalid, 4 refused, 5 a part of ours broke, 6 nothing is up, 7 verification failed, 8 run stopped, 130 interrupted.
"""


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except Stop as stop:
            if str(stop):
                terminal.error(str(stop))
            raise typer.Exit(stop.status) from None
        except BailiwickError as error:
            _debug()
            terminal.error(str(error))
            raise typer.Exit(of_error(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:  # who reads us has seen enough
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Exit.OK) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if type(error).__module__.startswith("typer."):
                raise  # a usage error: typer shows it
            _debug()
            terminal.error(f"internal error: {type(error).__name__}: {error}; set BAILIWICK_DEBUG=1 to see where")
            raise typer.Exit(Exit.BROKEN) from None


def _debug() -> None:
    if os.environ.get("BAILIWICK_DEBUG"):
        import traceback

        traceback.print_exc()


application = typer.Typer(
    name="bailiwick",
    cls=_Group,
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

for _part in (
    command_start,
    command_run,
    command_show,
    command_hold,
    command_control,
    command_workspace,
    command_record,
    command_installation,
):
    application.add_typer(_part.commands)
