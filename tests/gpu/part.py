"""One part as a program: `python -m tests.gpu.part NAME`. It imports the part alone, and only where it runs.

Processes that a part spawns import this module anew: it must stay as light as it is.
"""

import argparse
import importlib
from pathlib import Path


def main() -> None:
    """Run a part; the exit code says whether a row of it was wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--file", type=Path, required=True, help="of its rows")
    parser.add_argument("--data-root", type=Path)
    arguments = parser.parse_args()
    rows_module = importlib.import_module("tests.gpu.rows")
    rows = rows_module.Rows(arguments.file)
    options = rows_module.PartOptions(arguments.device, arguments.data_root)
    importlib.import_module(f"tests.gpu.{arguments.name}").measure(options, rows)
    raise SystemExit(1 if rows.wrong else 0)


if __name__ == "__main__":
    main()
