"""Publish many versions concurrently with other processes.

python publish_often.py REPOSITORY DESCRIPTION_JSON COUNT

Prints `ready`, waits for a line, publishes, and prints the numbers of its versions as JSON.
"""

import json
import sys
from pathlib import Path

from serving.bundle import Description, Repository


def main() -> None:
    """Publish COUNT versions."""
    repository, description_file, versions = (
        Repository(Path(sys.argv[1])),
        Path(sys.argv[2]),
        int(sys.argv[3]),
    )
    description = Description.model_validate_json(description_file.read_bytes())

    def write(folder: Path) -> Description:
        (folder / "model.onnx").write_bytes(b"a network")
        (folder / "golden.npz").write_bytes(b"examples")
        return description

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    published = [repository.publish("animals", write).version for _ in range(versions)]
    sys.stdout.write(json.dumps(published) + "\n")


if __name__ == "__main__":
    main()
