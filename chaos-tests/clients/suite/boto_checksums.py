"""boto3: the five checksum algorithms, in headers over http, in trailers over TLS, composite and of the whole object."""

import base64
import hashlib
import io
import os

from awscrt import checksums as crt

from .boto_multipart import Upload
from .checks import check, equal, refused

ALGORITHMS = {
    "CRC32": lambda body: crt.crc32(body).to_bytes(4, "big"),
    "CRC32C": lambda body: crt.crc32c(body).to_bytes(4, "big"),
    "CRC64NVME": lambda body: crt.crc64nvme(body).to_bytes(8, "big"),
    "SHA1": lambda body: hashlib.sha1(body).digest(),
    "SHA256": lambda body: hashlib.sha256(body).digest(),
}
MIB = 1 << 20


def text(raw):
    return base64.b64encode(raw).decode()


@check
def single_puts(c):
    for name, digest in ALGORITHMS.items():
        for size in (0, 10, 500_000):
            body = os.urandom(size)
            expected = text(digest(body))
            for source in (body, io.BytesIO(body)):
                put = c.put(name, source, ChecksumAlgorithm=name)
                equal(put[f"Checksum{name}"], expected, name)
            got = c.get(name, ChecksumMode="ENABLED")
            equal((got[f"Checksum{name}"], got["ChecksumType"]), (expected, "FULL_OBJECT"), name)
            assert got["Body"].read() == body
            equal(c.head(name, ChecksumMode="ENABLED")[f"Checksum{name}"], expected, name)


@check
def wrong_ones(c):
    for name, digest in ALGORITHMS.items():
        with refused("BadDigest", 400):
            c.put("bad", b"body", **{f"Checksum{name}": text(digest(b"other"))})
    with refused("NoSuchKey", 404):
        c.get("bad")


@check
def defaults_of_the_client(c):
    # boto3 adds a CRC32 to every PUT and checks what it gets.
    body = os.urandom(100_000)
    put = c.put("default", body)
    equal(put["ChecksumCRC32"], text(ALGORITHMS["CRC32"](body)))
    assert c.read("default") == body


@check
def composite_uploads(c):
    bodies = [os.urandom(5 * MIB), os.urandom(1000)]
    for name in ("CRC32", "CRC32C", "SHA1", "SHA256"):
        upload = Upload(c, name, ChecksumAlgorithm=name, ChecksumType="COMPOSITE")
        parts = []
        for number, body in enumerate(bodies, 1):
            done = c.s3.upload_part(**upload.names, PartNumber=number, Body=body, ChecksumAlgorithm=name)
            equal(done[f"Checksum{name}"], text(ALGORITHMS[name](body)), name)
            parts.append(
                {"PartNumber": number, "ETag": done["ETag"], f"Checksum{name}": done[f"Checksum{name}"]}
            )
        done = upload.complete(parts)
        expected = text(ALGORITHMS[name](b"".join(ALGORITHMS[name](body) for body in bodies))) + "-2"
        equal((done[f"Checksum{name}"], done["ChecksumType"]), (expected, "COMPOSITE"), name)
        head = c.head(name, ChecksumMode="ENABLED")
        equal((head[f"Checksum{name}"], head["ChecksumType"]), (expected, "COMPOSITE"), name)


@check
def full_object_uploads(c):
    bodies = [os.urandom(5 * MIB), os.urandom(5 * MIB), os.urandom(1000)]
    whole = b"".join(bodies)
    for name in ("CRC32", "CRC32C", "CRC64NVME"):
        upload = Upload(c, name, ChecksumAlgorithm=name, ChecksumType="FULL_OBJECT")
        parts = [
            upload.part(number, body, ChecksumAlgorithm=name) for number, body in enumerate(bodies, 1)
        ]
        expected = text(ALGORITHMS[name](whole))
        with refused("BadDigest", 400):
            upload.complete(
                parts, ChecksumType="FULL_OBJECT", **{f"Checksum{name}": text(ALGORITHMS[name](b"other"))}
            )
        done = upload.complete(parts, ChecksumType="FULL_OBJECT", **{f"Checksum{name}": expected})
        equal((done[f"Checksum{name}"], done["ChecksumType"]), (expected, "FULL_OBJECT"), name)
        equal(c.head(name, ChecksumMode="ENABLED")[f"Checksum{name}"], expected, name)
        assert c.read(name) == whole
