"""`make picture`: draws the README's terminal as SVG, from the real output of the programs.

Trains the demo's recipe, serves it, and classifies held-out digits. Training is cut to its checks and end.
"""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from tests.system.demo import FOLDER, PROGRAMS, RECIPE, REPOSITORY, held_out_digits, make_empty, server

WIDTH = 112  # letters
SIDE = 12  # pixels of a digit
SHOWN = ("  ✓", "published")  # beginnings of the lines of training


def main() -> None:
    """Write the picture to the file that the first argument names."""
    target = Path(sys.argv[1])
    make_empty(FOLDER)
    terminal = Console(record=True, width=WIDTH, highlight=False)
    training = ("lenserve-train", "run", RECIPE)
    printed = output(*training, "--repository", REPOSITORY, "--run-dir", FOLDER / "run")
    show(terminal, training, [line for line in printed.splitlines() if line.startswith(SHOWN)])
    images = held_out_digits()
    for row in range(SIDE):
        terminal.print(Text("    ").join(pixels(image, row) for image in images))
    terminal.print()
    with server() as (address, _):
        classify = ("lenserve", "classify", "--model", RECIPE, "--top-k", "2")
        printed = output(*classify, "--server", address, *images)
    show(terminal, (*classify, *(image.name for image in images)), printed.splitlines())
    svg = terminal.export_svg(title="lenserve", unique_id="lenserve")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # a picture fetches nothing
    target.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")


def output(program: str, *arguments: object) -> str:
    """Run a program and return stdout, then stderr."""
    command = [str(PROGRAMS / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def pixels(path: Path, row: int) -> Text:
    """Return a row of a grey image, two coloured spaces per pixel, which look the same in every font."""
    image = Image.open(path).resize((SIDE, SIDE), Image.Resampling.BOX)
    greys = (image.getpixel((column, row)) for column in range(SIDE))
    return Text.assemble(*(("  ", f"on rgb({grey},{grey},{grey})") for grey in greys))


def show(terminal: Console, command: tuple[str, ...], lines: list[str]) -> None:
    """Show a prompt with a command, and the lines that it printed."""
    terminal.print(Text(f"$ {' '.join(command)}", style="bold cyan"), soft_wrap=True)
    for line in lines:
        terminal.print(Text(line.replace(f"{FOLDER}/", "")), overflow="ellipsis", no_wrap=True)
    terminal.print()


if __name__ == "__main__":
    main()
