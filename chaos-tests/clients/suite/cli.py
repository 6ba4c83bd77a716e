"""The AWS CLI: `aws s3` and `aws s3api` as people type them."""

import filecmp
import os
import pathlib
import subprocess
import time
import uuid

import urllib3

from .checks import check, equal

ROOT = pathlib.Path(__file__).resolve().parents[3]
MIB = 1 << 20


@check
def buckets(c):
    name = "cli-" + uuid.uuid4().hex[:12]
    c.aws("s3", "mb", f"s3://{name}")
    assert name in c.aws("s3", "ls")
    c.api("head-bucket", "--bucket", name)
    assert name in [bucket["Name"] for bucket in c.api("list-buckets")["Buckets"]]
    c.aws("s3", "rb", f"s3://{name}")
    assert "404" in c.aws("s3api", "head-bucket", "--bucket", name, status=255)


@check
def copies_in_and_out(c):
    small, large = os.urandom(4000), os.urandom(20 * MIB)
    (c.dir / "small").write_bytes(small)
    (c.dir / "large").write_bytes(large)
    for name in ("small", "large"):
        c.aws("s3", "cp", name, f"s3://{c.bucket}/dir/{name}", "--no-progress")
        c.aws("s3", "cp", f"s3://{c.bucket}/dir/{name}", f"back-{name}", "--no-progress")
        assert filecmp.cmp(c.dir / name, c.dir / f"back-{name}", shallow=False), name
    listing = c.aws("s3", "ls", "--recursive", f"s3://{c.bucket}/")
    assert "4000 dir/small" in listing and f"{20 * MIB} dir/large" in listing, listing
    assert "PRE dir/" in c.aws("s3", "ls", f"s3://{c.bucket}/")
    c.aws("s3", "cp", f"s3://{c.bucket}/dir/large", f"s3://{c.bucket}/copy", "--no-progress")
    assert c.read("copy") == large
    c.aws("s3", "mv", f"s3://{c.bucket}/copy", f"s3://{c.bucket}/moved", "--no-progress")
    equal(c.keys(), ["dir/large", "dir/small", "moved"])
    c.aws("s3", "rm", "--recursive", f"s3://{c.bucket}/", "--quiet")
    equal(c.keys(), [])


@check
def streams(c):
    body = os.urandom(9 * MIB)
    c.aws("s3", "cp", "-", f"s3://{c.bucket}/stream", stdin=body)
    assert c.read("stream") == body


@check
def sync_there_and_back(c):
    tree = c.dir / "tree"
    tree.mkdir()
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=False
    ).stdout.decode().split("\0")
    names = [name for name in tracked if name and (ROOT / name).is_file()]
    if not names:
        names = [str(path.relative_to(ROOT)) for path in (ROOT / "chaos-tests").rglob("*") if path.is_file()]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    (tree / "empty file").write_bytes(b"")
    (tree / "large file").write_bytes(os.urandom(17 * MIB))
    (tree / "d\u00e9j\u00e0 & vu +.txt").write_bytes(b"x" * 3000)

    # sync compares times in whole seconds: a file of this very second would be newer than its object.
    for path in tree.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)
    c.aws("s3", "sync", "tree", f"s3://{c.bucket}/tree", "--quiet")
    c.aws("s3", "sync", f"s3://{c.bucket}/tree", "back", "--quiet")
    subprocess.run(["diff", "-r", c.dir / "tree", c.dir / "back"], check=True)
    equal(c.aws("s3", "sync", "tree", f"s3://{c.bucket}/tree"), "", "nothing is left to do")
    (tree / "empty file").unlink()
    (tree / "new file").write_bytes(b"new")
    c.aws("s3", "sync", "--delete", "tree", f"s3://{c.bucket}/tree", "--quiet")
    keys = c.keys()
    assert "tree/new file" in keys and "tree/empty file" not in keys


@check
def empty_files_among_others(c):
    """On one connection: what is answered without a 100 must not spoil the next answer."""
    tree = c.dir / "mixed"
    tree.mkdir()
    for number in range(60):
        (tree / f"{number:02}").write_bytes(b"x" * (number % 3) * 5000)
    begun = time.monotonic()
    c.aws("s3", "sync", "mixed", f"s3://{c.bucket}/mixed", "--quiet")
    # A client that waits for the rest of an answer does so for a minute.
    assert time.monotonic() - begun < 50
    equal(len(c.keys(Prefix="mixed/")), 60)


@check
def documents_named_xml(c):
    (c.dir / "a.xml").write_bytes(b"<a/>" * 700)
    c.aws("s3", "cp", "a.xml", f"s3://{c.bucket}/a.xml", "--content-type", "application/xml")
    equal(c.head("a.xml")["ContentLength"], 2800)
    c.aws("s3", "cp", f"s3://{c.bucket}/a.xml", "b.xml")
    equal((c.dir / "b.xml").read_bytes(), b"<a/>" * 700)


@check
def objects(c):
    body = os.urandom(5000)
    (c.dir / "body").write_bytes(body)
    at = ("--bucket", c.bucket, "--key", "a b/\u00e9")
    put = c.api(
        "put-object", *at, "--body", "body", "--content-type", "text/x", "--metadata", "one=1,two=2",
        "--cache-control", "no-cache",
    )
    head = c.api("head-object", *at)
    equal(head["ETag"], put["ETag"])
    equal((head["ContentType"], head["Metadata"], head["CacheControl"]), ("text/x", {"one": "1", "two": "2"}, "no-cache"))
    c.api("get-object", *at, "out")
    equal((c.dir / "out").read_bytes(), body)
    c.api("get-object", *at, "--range", "bytes=10-19", "part")
    equal((c.dir / "part").read_bytes(), body[10:20])
    assert "304" in c.aws("s3api", "get-object", *at, "--if-none-match", put["ETag"], "no", status=255)
    assert "PreconditionFailed" in c.aws("s3api", "get-object", *at, "--if-match", '"0"', "no", status=255)
    assert "PreconditionFailed" in c.aws("s3api", "put-object", *at, "--body", "body", "--if-none-match", "*", status=255)
    c.api("copy-object", "--bucket", c.bucket, "--key", "copy", "--copy-source", f"{c.bucket}/a b/\u00e9")
    assert c.read("copy") == body
    done = c.api(
        "delete-objects", "--bucket", c.bucket, "--delete", "Objects=[{Key=copy},{Key=missing}]"
    )
    equal(len(done["Deleted"]), 2)
    c.api("delete-object", *at)
    assert "404" in c.aws("s3api", "head-object", *at, status=255)
    assert "NoSuchKey" in c.aws("s3api", "get-object", *at, "no", status=255)


@check
def listings(c):
    for key in ("a", "b/1", "b/2", "c"):
        c.put(key)
    page = c.api("list-objects-v2", "--bucket", c.bucket, "--delimiter", "/")
    equal([entry["Key"] for entry in page["Contents"]], ["a", "c"])
    equal(page["CommonPrefixes"], [{"Prefix": "b/"}])
    page = c.api("list-objects-v2", "--bucket", c.bucket, "--page-size", "1", "--start-after", "a")
    equal([entry["Key"] for entry in page["Contents"]], ["b/1", "b/2", "c"])
    page = c.api("list-objects", "--bucket", c.bucket, "--prefix", "b/", "--page-size", "1")
    equal([entry["Key"] for entry in page["Contents"]], ["b/1", "b/2"])


@check
def multipart(c):
    at = ("--bucket", c.bucket, "--key", "big")
    upload = c.api("create-multipart-upload", *at, "--checksum-algorithm", "CRC32C")["UploadId"]
    bodies = [os.urandom(5 * MIB), os.urandom(77)]
    parts = []
    for number, body in ((2, bodies[1]), (1, bodies[0])):
        (c.dir / "part").write_bytes(body)
        done = c.api(
            "upload-part", *at, "--upload-id", upload, "--part-number", number, "--body", "part",
            "--checksum-algorithm", "CRC32C",
        )
        parts.insert(0, f"{{PartNumber={number},ETag={done['ETag']},ChecksumCRC32C={done['ChecksumCRC32C']}}}")
    listed = c.api("list-parts", *at, "--upload-id", upload)
    equal([part["PartNumber"] for part in listed["Parts"]], [1, 2])
    equal(len(c.api("list-multipart-uploads", "--bucket", c.bucket)["Uploads"]), 1)
    c.api(
        "complete-multipart-upload", *at, "--upload-id", upload, "--multipart-upload", f"Parts=[{','.join(parts)}]"
    )
    c.api("get-object", *at, "--part-number", "2", "two")
    equal((c.dir / "two").read_bytes(), bodies[1])
    assert c.read("big") == b"".join(bodies)
    upload = c.api("create-multipart-upload", *at)["UploadId"]
    c.api("abort-multipart-upload", *at, "--upload-id", upload)
    equal(c.api("list-multipart-uploads", "--bucket", c.bucket).get("Uploads"), None)


@check
def checksums(c):
    (c.dir / "body").write_bytes(os.urandom(300_000))
    for name in ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"):
        at = ("--bucket", c.bucket, "--key", name)
        put = c.api("put-object", *at, "--body", "body", "--checksum-algorithm", name)
        head = c.api("head-object", *at, "--checksum-mode", "ENABLED")
        equal(head[f"Checksum{name}"], put[f"Checksum{name}"], name)


@check
def presigned(c):
    c.put("a", b"presigned")
    url = c.aws("s3", "presign", f"s3://{c.bucket}/a", "--expires-in", "60").strip()
    equal(urllib3.PoolManager(ca_certs=c.zone.ca).request("GET", url).data, b"presigned")
