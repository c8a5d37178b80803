"""A repository of this project opens in Triton: the files that its documentation asks for."""

import json
from pathlib import Path

import onnxruntime
import pytest
from google.protobuf import text_format

from serving.bundle import Repository
from serving.cli import main
from serving.client import AsyncClient
from serving.pb.inference import model_config_pb2 as pb
from tests.colours import LABELS, SIDE, Publish
from tests.servers import Serve


def export(repository: Repository, *options: str) -> int:
    """Run the command."""
    return main(["models", "export-config", "--repository", str(repository.root), *options])


def test_the_configuration_describes_the_network(repository: Repository, publish: Publish) -> None:
    """Names, types and dimensions are those of model.onnx without its batch, and labels keep their order."""
    bundle = publish()
    assert export(repository, "--max-batch-size", "8") == 0
    folder = repository.root / "colours"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
    session = onnxruntime.InferenceSession(bundle.model_file, providers=["CPUExecutionProvider"])
    for described, tensors in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        found = {tensor.name: list(tensor.shape[1:]) for tensor in tensors}
        assert {each.name: list(each.dims) for each in described} == found
    assert config.input[0].data_type == pb.TYPE_UINT8
    assert list(config.input[0].dims) == [SIDE, SIDE, 3]
    assert {output.data_type for output in config.output} == {pb.TYPE_FP32}
    assert (config.name, config.backend, config.max_batch_size) == ("colours", "onnxruntime", 8)
    assert config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [1]
    labels = (folder / config.output[0].label_filename).read_text()
    assert tuple(labels.splitlines()) == LABELS


def test_stable_chooses_the_version(
    repository: Repository, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without that alias the newest one; the command can be run again."""
    publish()
    publish()
    assert export(repository) == 0
    repository.set_alias("colours", "stable", 1)
    assert export(repository) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" for ")[2] for line in printed] == ["version 2", "version 1"]
    config = text_format.Parse((repository.root / "colours" / "config.pbtxt").read_text(), pb.ModelConfig())
    assert list(config.version_policy.specific.versions) == [1]


async def test_a_server_does_not_mind_the_files(
    repository: Repository, publish: Publish, serve: Serve
) -> None:
    """The same folder is served as before."""
    publish()
    assert export(repository) == 0
    async with serve() as server, AsyncClient(f"127.0.0.1:{server.grpc.port}") as client:
        await client.wait_ready("colours")
    assert repository.overlooked("colours") == []


@pytest.mark.parametrize("name", ["config.pbtxt", "labels.txt"])
def test_files_of_another_program_are_kept(
    name: str, repository: Repository, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that somebody tuned by hand is not lost, nor are labels without one."""
    publish()
    path = repository.root / "colours" / name
    path.write_text('name: "colours"\n')
    assert export(repository) == 1
    assert f"lenserve models export-config: {path} was not written by this command" in capsys.readouterr().err
    assert path.read_text() == 'name: "colours"\n'
    path.unlink()
    assert export(repository) == 0
    (repository.root / "colours" / "config.pbtxt").unlink()
    assert export(repository) == 0, "the same labels, as of a command that was killed"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("shapes", "the repository has no model 'shapes'; it has colours"),
        ("shapes@1", "the repository has no model 'shapes'; it has colours"),
        ("colours@7", "the repository has no version 7 of model 'colours'; its newest versions: 1"),
        ("colours@canary", "model 'colours' has no alias 'canary'; known aliases: none"),
    ],
)
def test_what_is_unknown_is_named(
    named: str, message: str, repository: Repository, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written."""
    publish()
    assert export(repository, named) == 1
    assert capsys.readouterr().err == f"lenserve models export-config: {message}\n"
    assert not (repository.root / "colours" / "config.pbtxt").exists()


def test_a_model_is_named_once(
    repository: Repository, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder has one config.pbtxt."""
    publish()
    publish()
    assert export(repository, "colours@1", "colours@2") == 2
    assert capsys.readouterr().err == (
        "lenserve models export-config: colours is named 2 times, and Triton reads one config.pbtxt of a "
        "model: name one version of it\n"
    )
    assert not (repository.root / "colours" / "config.pbtxt").exists()


@pytest.mark.parametrize(
    ("named", "version"), [("colours", 2), ("colours@1", 1), ("colours@3", 3), ("colours@canary", 1)]
)
def test_a_version_is_named_as_in_other_commands(
    named: str, version: int, repository: Repository, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    """MODEL is the version that `stable` names; the result is one JSON object for programs."""
    for _ in range(3):
        publish()
    repository.set_alias("colours", "stable", 2)
    repository.set_alias("colours", "canary", 1)
    assert export(repository, named, "--json") == 0
    folder = repository.root / "colours"
    files = {"config": str(folder / "config.pbtxt"), "labels": str(folder / "labels.txt")}
    assert json.loads(capsys.readouterr().out) == {
        "models": [{"model": "colours", "version": version, **files}]
    }
    config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
    assert list(config.version_policy.specific.versions) == [version]


def test_of_several_models_all_are_written_or_none(
    repository: Repository, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a name, every model of the repository; a file of another program stops the command before."""
    publish()
    publish("shapes")
    path = repository.root / "shapes" / "config.pbtxt"
    path.write_text('name: "shapes"\n')
    assert export(repository) == 1
    assert not (repository.root / "colours" / "config.pbtxt").exists()
    path.unlink()
    assert export(repository) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        str(repository.root / "colours" / "config.pbtxt"),
        str(path),
    ]


def test_a_file_that_cannot_be_written_is_named(
    repository: Repository, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason of the system and a remedy."""
    publish()
    path = repository.root / "colours" / "labels.txt"
    path.with_name(".labels.txt.new").mkdir()
    assert export(repository) == 1
    assert capsys.readouterr().err == (
        f"lenserve models export-config: {path} cannot be written: Is a directory; make room, or correct "
        f"permissions of {path.parent}\n"
    )


def test_an_empty_repository_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be the wrong directory."""
    assert main(["models", "export-config", "--repository", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(
        f"{tmp_path} has no models yet: name a directory of published models\n"
    )
