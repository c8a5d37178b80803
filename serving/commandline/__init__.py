"""The command line that `lenserve` and `lenserve-train` share: options, config file, exit codes, messages."""

from serving.commandline.command import Command
from serving.commandline.extras import require_import, require_server, require_training
from serving.commandline.output import print_line, print_table, stderr
from serving.commandline.program import DONE, FAILED, WRONG_USAGE, Commands, resolve, run_commands
from serving.commandline.standard_streams import can_show

__all__ = [
    "DONE",
    "FAILED",
    "WRONG_USAGE",
    "Command",
    "Commands",
    "can_show",
    "print_line",
    "print_table",
    "require_import",
    "require_server",
    "require_training",
    "resolve",
    "run_commands",
    "stderr",
]
