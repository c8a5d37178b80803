"""What a network is trained and judged on is what the server makes of the same image, to the bit."""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from serving.bundle import Geometry, ImageLimits, apply_geometry, decode_image, keeps_pixels
from serving.bundle.images import Pixels
from tests.training.data.sources.test_mnist import write_mnist
from training.data import load_unchecked
from training.data.sources import cifar10, digits, fake, folder, imagenet, mnist, npz
from training.data.storage.arrays import apply_geometry_to_all
from training.data.storage.decoded_images import DecodeOptions, decode_files
from training.data.storage.disk_images import Images
from training.recipe import DataRecipe

sides = st.sampled_from([8, 28, 32]) | st.integers(1, 40)
channels = st.sampled_from([1, 3])


def geometries(side: int | None = None, planes: int | None = None) -> st.SearchStrategy[Geometry]:
    """Any geometry; half of them of the source's own size, where there may seem to be nothing to do."""

    def built(side: st.SearchStrategy[int], planes: st.SearchStrategy[int]) -> st.SearchStrategy[Geometry]:
        return st.builds(
            Geometry,
            height=side,
            width=side,
            channels=planes,
            fit=st.sampled_from(["stretch", "crop", "pad"]),
            crop_fraction=st.sampled_from([1.0, 0.875, 0.5]),
            interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
            background=st.integers(0, 255),
        )

    if side is None or planes is None:
        return built(sides, channels)
    return built(st.just(side), st.just(planes)) | built(sides, channels)


a_few = settings(deadline=None, max_examples=40)


def served(encoded: bytes, geometry: Geometry) -> Pixels:
    """What the server makes of a file."""
    return apply_geometry(decode_image(encoded, ImageLimits()), geometry)


def as_png(image: Pixels) -> bytes:
    """An array as a client would send it."""
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def assert_as_served(
    found: Sequence[Pixels] | Images, images: Sequence[Pixels] | Images, geometry: Geometry
) -> None:
    """Each found image, (H, W, C), is what the server makes of the original as a PNG."""
    assert len(found) == len(images) > 0
    for each, image in zip(found[:], images[:], strict=True):
        np.testing.assert_array_equal(each, served(as_png(image), geometry))


def noise(*shape: int) -> Pixels:
    """The same noise for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@a_few
@given(geometry=geometries(8, 1))
def test_digits(geometry: Geometry) -> None:
    """The scans that come with scikit-learn."""
    scans = np.rint(load_digits().images[:5] * (255 / 16)).astype(np.uint8)[..., None]
    assert_as_served(digits.load(geometry).train.images[:5], scans, geometry)


@a_few
@given(geometry=geometries())
def test_fake(geometry: Geometry) -> None:
    """Synthetic images are made in the network's size, and cropped from there."""
    recipe = DataRecipe(source="fake", fake_images_per_class=10, fake_classes=2)
    whole = fake.load(geometry.model_copy(update={"fit": "stretch"}), recipe)
    assert_as_served(fake.load(geometry, recipe).train.images, whole.train.images, geometry)


@a_few
@given(geometry=geometries(28, 1))
def test_mnist(geometry: Geometry) -> None:
    """IDX files."""
    with tempfile.TemporaryDirectory() as root:
        write_mnist(Path(root), packed=False, per_class=1)
        raw = Path(root) / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
        source = mnist.load(geometry, Path(root), download=False)
        assert source.test is not None
        assert_as_served(source.test.images, mnist.read_idx(raw, axes=3)[..., None], geometry)


@a_few
@given(geometry=geometries(32, 3))
def test_cifar10(geometry: Geometry) -> None:
    """Binary batches of planes."""
    images = noise(10, 3, 32, 32)
    rows = np.hstack([np.arange(10, dtype=np.uint8)[:, None], images.reshape(10, -1)])
    with tempfile.TemporaryDirectory() as root:
        batches = Path(root) / "cifar-10-batches-bin"
        batches.mkdir()
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
            (batches / f"{name}.bin").write_bytes(rows.tobytes())
        source = cifar10.load(geometry, Path(root), DataRecipe(source="cifar10"))
    assert source.test is not None
    assert_as_served(source.test.images, images.transpose(0, 2, 3, 1), geometry)


@a_few
@given(data=st.data(), side=sides, planes=channels)
def test_npz(data: st.DataObject, side: int, planes: int) -> None:
    """Arrays of any size, grey or in colour."""
    geometry = data.draw(geometries(side, planes))
    images = noise(4, side, side, planes)
    with tempfile.TemporaryDirectory() as root:
        stored = images[..., 0] if planes == 1 else images
        np.savez(Path(root) / "some.npz", train_images=stored, train_labels=np.arange(4)[:, None] % 2)
        source = npz.load(geometry, Path(root), DataRecipe(source="npz"))
    assert_as_served(source.train.images, images, geometry)


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def _write_every_kind(root: Path, class_name: str, height: int, width: int) -> None:
    """Files of the kinds that a decoder can read in more than one way."""
    target = root / class_name
    target.mkdir(parents=True)
    colour = Image.fromarray(noise(height, width, 3))
    wide = (np.arange(height * width, dtype=np.uint32).reshape(height, width) * 257 % 65536).astype(np.uint16)
    colour.save(target / "rgb.png")
    colour.save(target / "turned.jpg", exif=_orientation(6))
    colour.save(target / "turned.png", exif=_orientation(8))
    colour.convert("L").save(target / "grey.jpg")
    colour.convert("CMYK").save(target / "cmyk.jpg")
    colour.quantize(16).save(target / "palette.png")
    colour.quantize(16).save(target / "transparent.gif", transparency=3)
    colour.convert("1").save(target / "bits.png")
    Image.fromarray(noise(height, width, 4), "RGBA").save(target / "alpha.png")
    Image.fromarray(noise(height, width, 2), "LA").save(target / "grey-alpha.png")
    Image.fromarray(wide).save(target / "wide.png")
    Image.fromarray(wide).save(target / "wide.tif")


@settings(deadline=None, max_examples=25)
@given(geometry=geometries(), height=sides, width=sides)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_folders_and_imagenet(geometry: Geometry, height: int, width: int) -> None:
    """Files of 16 bits, palettes, transparency, CMYK, one bit and EXIF orientation: from files and cache."""
    with tempfile.TemporaryDirectory() as named:
        root = Path(named) / "photos"
        for class_name in ("n01440764", "n01443537"):
            _write_every_kind(root, class_name, height, width)
        decoded = DecodeOptions(Path(named) / "cache")
        for options in (DecodeOptions(), decoded, decoded):
            trained = folder.load(geometry, root, options).train
            for split in (trained, imagenet.load(geometry, root, options).test):
                assert split is not None
                assert len(split) == 24
                for image, name in zip(split.images, split.names, strict=True):
                    encoded = (root / name).read_bytes()
                    np.testing.assert_array_equal(image, served(encoded, geometry), err_msg=name)


@a_few
@given(data=st.data(), side=st.integers(11, 40), planes=channels)
def test_skipping_the_geometry_is_only_allowed_where_it_does_nothing(
    data: st.DataObject, side: int, planes: int
) -> None:
    """`keeps_pixels` is true exactly where images of this shape come out unchanged."""
    geometry = data.draw(geometries(side, planes))
    image = noise(side, side, planes)
    assert keeps_pixels(image.shape, geometry) == np.array_equal(apply_geometry(image, geometry), image)


def test_nothing_is_copied_where_nothing_is_done() -> None:
    """The images of MNIST and CIFAR-10 in their own size are not touched one by one."""
    images = noise(3, 28, 28, 1)
    assert apply_geometry_to_all(images, Geometry(height=28, width=28, channels=1)) is images


def test_a_cache_does_not_outlive_the_code_that_decoded_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other code or another version of a package decodes the files again."""
    path = tmp_path / "a.png"
    path.write_bytes(as_png(noise(9, 9, 3)))
    geometry = Geometry(height=8, width=8, channels=3)
    decode_files([path], geometry, tmp_path / "cache")
    decode_files([path], geometry, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    for replaced in ("importlib.metadata.version", "inspect.getsource"):
        with monkeypatch.context() as patched:
            patched.setattr(replaced, lambda _name: "other")
            decode_files([path], geometry, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3


def test_the_judged_split_is_cropped_too(tmp_path: Path) -> None:
    """The whole way of `evaluate`: images whose border names the class lose it by a crop."""
    images = np.zeros((40, 28, 28), np.uint8)
    images[::2, 0] = images[::2, -1] = 255
    labels = np.arange(40)[:, None] % 2
    content = {f"{split}_{key}": value for split in ("train", "val", "test")
               for key, value in (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "border.npz", **content)  # type: ignore[arg-type] # of its option allow_pickle
    geometry = Geometry(height=28, width=28, channels=1, fit="crop", crop_fraction=0.75)
    dataset = load_unchecked(DataRecipe(source="npz"), geometry, tmp_path)
    assert not dataset.test.images[:].any()
