# Makes 20 images of different sizes and kinds in a folder and, beside each, Pillow's result as raw RGB:
# NAME.rgb (decoded), NAME.224 (resized to 224 x 224), NAME.centre (shorter side 256, middle 224 x 224).
# compare-pillow.fsx runs it; it needs Pillow and numpy.
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

folder = Path(sys.argv[1])
rng = np.random.RandomState(7)


def photograph(height, width):
    """A sky, a ground, blobs of light and a little noise."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    image = np.stack([90 + 120 * y / height, 130 + 60 * y / height, 220 - 150 * y / height], -1)
    for _ in range(12):
        cx, cy, r = rng.rand() * width, rng.rand() * height, (0.03 + 0.2 * rng.rand()) * min(height, width)
        weight = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * r * r))[..., None]
        image = image * (1 - weight) + weight * rng.randint(0, 256, 3)
    return Image.fromarray(np.clip(image + rng.randn(height, width, 3) * 6, 0, 255).astype(np.uint8))


def noise(height, width):
    return Image.fromarray(rng.randint(0, 256, (height, width, 3)).astype(np.uint8))


def text(height, width):
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for i in range(0, height, 11):
        draw.text((3, i), "The quick brown fox jumps over the lazy dog. " * 4, fill=tuple(rng.randint(0, 200, 3)))
    return image


def checks(height, width):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, -1))


def gradient(height, width):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) % 256], -1).astype(np.uint8)
    )


def png16(path, image):
    samples = np.asarray(image).astype(np.uint16) * 256 + rng.randint(0, 256, np.asarray(image).shape)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) & 0xFFFFFFFF)

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", image.width, image.height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


jpeg = dict(format="JPEG", quality=90)
images = [
    ("photo-500x375.jpg", photograph(375, 500), jpeg),
    ("photo-375x500.jpg", photograph(500, 375), jpeg),
    ("photo-1600x1067.jpg", photograph(1067, 1600), jpeg),
    ("photo-progressive.jpg", photograph(333, 499), dict(jpeg, progressive=True)),
    ("photo-444.jpg", photograph(480, 640), dict(jpeg, subsampling=0)),
    ("photo-grey.jpg", photograph(300, 400).convert("L"), jpeg),
    ("photo-cmyk.jpg", photograph(281, 422).convert("CMYK"), jpeg),
    ("photo-quality-30.jpg", photograph(512, 512), dict(jpeg, quality=30)),
    ("photo-64.jpg", photograph(64, 64), jpeg),
    ("photo.webp", photograph(350, 467), dict(format="WEBP", quality=80)),
    ("lossless.webp", text(240, 320), dict(format="WEBP", lossless=True)),
    ("noise.png", noise(311, 257), dict(format="PNG")),
    ("noise-small.png", noise(17, 29), dict(format="PNG")),
    ("text.png", text(600, 420), dict(format="PNG")),
    ("checks.bmp", checks(301, 449), dict(format="BMP")),
    ("gradient.png", gradient(800, 1200), dict(format="PNG")),
    ("palette.png", photograph(260, 390).quantize(64), dict(format="PNG")),
    ("alpha.png", photograph(320, 280).convert("RGBA"), dict(format="PNG")),
    ("wide.png", gradient(90, 1400), dict(format="PNG")),
    ("16-bit.png", photograph(225, 300), None),
]

for name, image, options in images:
    path = folder / name
    if options is None:
        png16(path, image)
    else:
        image.save(path, **options)
    image = Image.open(path).convert("RGB")
    (folder / (name + ".rgb")).write_bytes(image.tobytes())
    (folder / (name + ".224")).write_bytes(image.resize((224, 224), Image.BILINEAR).tobytes())
    width, height = image.size
    if width <= height:
        resized = image.resize((256, int(256 * height / width)), Image.BILINEAR)
    else:
        resized = image.resize((int(256 * width / height), 256), Image.BILINEAR)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    (folder / (name + ".centre")).write_bytes(resized.crop((left, top, left + 224, top + 224)).tobytes())
