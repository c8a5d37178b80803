"""What decoders write to stderr."""

import subprocess
import sys

# A process of its own: libtiff's handlers cannot be put back.
_DECODE = """
import io, sys
from PIL import Image
from serving.bundle import ImageLimits, decode_image
from serving.bundle.decoder_messages import silence_decoders
from serving.errors import UndecodableImage

tiff, colour, jpeg = io.BytesIO(), io.BytesIO(), io.BytesIO()
noise = Image.effect_noise((64, 64), 90)
noise.save(tiff, "TIFF", compression="tiff_lzw")
# Nine tags are announced, and none follows.
noise.save(jpeg, "JPEG", exif=bytes.fromhex("457869660000 4d4d002a00000008 0009"))
noise.convert("RGB").save(colour, "TIFF")
crowded = colour.getvalue()
samples = crowded.index(bytes.fromhex("1501 0300")) + 8  # the value of SamplesPerPixel, a SHORT
crowded = crowded[:samples] + bytes.fromhex("ffff") + crowded[samples + 2 :]
damaged = tiff.getvalue()
damaged = damaged[:20] + bytes(1000) + damaged[1020:]


def decode():
    for each in damaged, crowded:
        try:
            decode_image(each, ImageLimits())
        except UndecodableImage:
            print("undecodable")
    print(decode_image(jpeg.getvalue(), ImageLimits()).shape)


decode()
print("silence", file=sys.stderr, flush=True)
silence_decoders()
decode()
"""


def test_damaged_images_write_nothing_to_stderr() -> None:
    """Pillow and libtiff are loud by default; silenced, they make the same of the same files."""
    done = subprocess.run(
        [sys.executable, "-c", _DECODE], capture_output=True, text=True, check=True, timeout=60
    )
    loud, _, silent = done.stderr.partition("silence\n")
    assert "EXIF" in loud
    assert "More samples" in loud
    assert "LZWDecode" in loud or "tempfile.tif" in loud
    assert silent == ""
    assert done.stdout == "undecodable\nundecodable\n(64, 64, 1)\n" * 2
