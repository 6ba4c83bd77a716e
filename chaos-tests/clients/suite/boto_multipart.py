"""boto3: multipart uploads."""

import concurrent.futures
import hashlib
import io
import os

import boto3.s3.transfer

from .checks import check, equal, refused

MIB = 1 << 20


class Upload:
    def __init__(self, c, key, **more):
        self.c, self.key = c, key
        self.id = c.s3.create_multipart_upload(Bucket=c.bucket, Key=key, **more)["UploadId"]
        self.names = {"Bucket": c.bucket, "Key": key, "UploadId": self.id}

    def part(self, number, body, **more):
        done = self.c.s3.upload_part(**self.names, PartNumber=number, Body=body, **more)
        return {"PartNumber": number, "ETag": done["ETag"]}

    def complete(self, parts, **more):
        return self.c.s3.complete_multipart_upload(**self.names, MultipartUpload={"Parts": parts}, **more)

    def listed(self, **more):
        return self.c.s3.list_parts(**self.names, **more)


@check
def parallel_parts_out_of_order(c):
    bodies = [os.urandom(5 * MIB), os.urandom(5 * MIB + 3), os.urandom(6 * MIB), os.urandom(9)]
    upload = Upload(c, "big", ContentType="video/x", Metadata={"m": "1"})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(upload.part, number, bodies[number - 1]) for number in (3, 1, 4, 2)]
        parts = sorted((job.result() for job in jobs), key=lambda part: part["PartNumber"])
    done = upload.complete(parts)
    digests = b"".join(hashlib.md5(body).digest() for body in bodies)
    equal(done["ETag"], f'"{hashlib.md5(digests).hexdigest()}-4"')
    got = c.get("big")
    equal((got["ContentType"], got["Metadata"]), ("video/x", {"m": "1"}))
    assert got["Body"].read() == b"".join(bodies)
    for number, body in enumerate(bodies, 1):
        part = c.get("big", PartNumber=number)
        equal(part["PartsCount"], 4)
        assert part["Body"].read() == body, number
        equal(c.head("big", PartNumber=number)["ContentLength"], len(body))


@check
def replaced_and_listed_parts(c):
    upload = Upload(c, "again")
    upload.part(2, b"old")
    new = upload.part(2, b"newer")
    first = upload.part(1, b"f" * 5 * MIB)
    listing = upload.listed()
    equal([(part["PartNumber"], part["Size"]) for part in listing["Parts"]], [(1, 5 * MIB), (2, 5)])
    page = upload.listed(MaxParts=1)
    equal((page["IsTruncated"], page["NextPartNumberMarker"]), (True, 1))
    upload.complete([first, new])
    assert c.read("again") == b"f" * 5 * MIB + b"newer"


@check
def aborted_and_listed_uploads(c):
    uploads = [Upload(c, key) for key in ("b", "a/1", "a/2")]
    listing = c.s3.list_multipart_uploads(Bucket=c.bucket)
    equal([entry["Key"] for entry in listing["Uploads"]], ["a/1", "a/2", "b"])
    listing = c.s3.list_multipart_uploads(Bucket=c.bucket, Prefix="a/", MaxUploads=1)
    equal(([entry["Key"] for entry in listing["Uploads"]], listing["IsTruncated"]), (["a/1"], True))
    pages = c.s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=c.bucket, PaginationConfig={"PageSize": 1}
    )
    equal([entry["Key"] for page in pages for entry in page.get("Uploads", [])], ["a/1", "a/2", "b"])
    part = uploads[0].part(1, b"x")
    for upload in uploads:
        c.s3.abort_multipart_upload(**upload.names)
    with refused("NoSuchUpload", 404):
        uploads[0].part(1, b"x")
    with refused("NoSuchUpload", 404):
        uploads[0].complete([part])
    assert "Uploads" not in c.s3.list_multipart_uploads(Bucket=c.bucket)


@check
def parts_copied_from_objects(c):
    body = os.urandom(11 * MIB)
    c.put("source", body)
    upload = Upload(c, "copied")
    source = {"Bucket": c.bucket, "Key": "source"}
    parts = []
    for number, (first, last) in enumerate([(0, 5 * MIB - 1), (5 * MIB, 11 * MIB - 1)], 1):
        done = c.s3.upload_part_copy(
            **upload.names, PartNumber=number, CopySource=source, CopySourceRange=f"bytes={first}-{last}"
        )
        parts.append({"PartNumber": number, "ETag": done["CopyPartResult"]["ETag"]})
    upload.complete(parts)
    assert c.read("copied") == body


@check
def wrong_completions(c):
    upload = Upload(c, "wrong")
    one, two = upload.part(1, b"small"), upload.part(2, b"last")
    with refused("EntityTooSmall", 400):
        upload.complete([one, two])
    with refused("InvalidPartOrder", 400):
        upload.complete([two, one])
    with refused("InvalidPart", 400):
        upload.complete([{**one, "PartNumber": 9}])
    c.put("wrong", b"in the way")
    with refused("PreconditionFailed", 412):
        upload.complete([one], IfNoneMatch="*")
    upload.complete([one])
    equal(c.read("wrong"), b"small")


@check
def managed_transfers(c):
    body = os.urandom(21 * MIB + 5)
    config = boto3.s3.transfer.TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB)
    c.s3.upload_fileobj(io.BytesIO(body), c.bucket, "managed", Config=config, ExtraArgs={"ContentType": "a/b"})
    back = io.BytesIO()
    c.s3.download_fileobj(c.bucket, "managed", back, Config=config)
    assert back.getvalue() == body
    equal(c.head("managed")["ContentType"], "a/b")
    c.s3.copy({"Bucket": c.bucket, "Key": "managed"}, c.bucket, "managed copy", Config=config)
    assert c.read("managed copy") == body
