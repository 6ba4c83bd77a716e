"""boto3: buckets, objects, conditions, copies, presigned URLs, keys."""

import datetime
import hashlib
import io
import os
import uuid

import urllib3

from .checks import check, equal, refused

SIZES = [0, 1, 2048, 2049, 100_000, 262_144, 1 << 20, (4 << 20) + 1, (9 << 20) + 12_345]


@check
def buckets(c):
    name = "check-" + uuid.uuid4().hex[:12]
    c.s3.create_bucket(Bucket=name)
    c.s3.head_bucket(Bucket=name)
    assert name in [bucket["Name"] for bucket in c.s3.list_buckets()["Buckets"]]
    with refused("BucketAlreadyOwnedByYou", 409):
        c.s3.create_bucket(Bucket=name)
    c.s3.put_object(Bucket=name, Key="a", Body=b"x")
    with refused("BucketNotEmpty", 409):
        c.s3.delete_bucket(Bucket=name)
    c.s3.delete_object(Bucket=name, Key="a")
    c.s3.delete_bucket(Bucket=name)
    with refused("404", 404):
        c.s3.head_bucket(Bucket=name)
    with refused("NoSuchBucket", 404):
        c.s3.list_objects_v2(Bucket=name)


@check
def sizes(c):
    for size in SIZES:
        body = os.urandom(size)
        put = c.put(f"size-{size}", body)
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        equal(put["ETag"], etag, size)
        got = c.get(f"size-{size}")
        equal((got["ContentLength"], got["ETag"]), (size, etag), size)
        assert got["Body"].read() == body, size
        equal(c.head(f"size-{size}")["ContentLength"], size)


@check
def streams_of_unknown_digest(c):
    # A body that cannot be sent twice travels aws-chunked over TLS, with its checksum in a trailer.
    body = os.urandom(300_000)
    c.put("stream", io.BytesIO(body))
    equal(c.read("stream") == body, True)
    assert "ContentEncoding" not in c.head("stream")


@check
def ranges(c):
    body = os.urandom((9 << 20) + 77)
    c.put("a", body)
    for text, expected in [
        ("bytes=0-0", body[:1]),
        ("bytes=4194300-4194310", body[4194300:4194311]),
        ("bytes=9437180-", body[9437180:]),
        ("bytes=-9", body[-9:]),
        ("bytes=5-99999999", body[5:]),
    ]:
        got = c.get("a", Range=text)
        equal(got["ResponseMetadata"]["HTTPStatusCode"], 206, text)
        assert got["Body"].read() == expected, text
    with refused("InvalidRange", 416):
        c.get("a", Range="bytes=99999999-")


@check
def metadata_and_headers(c):
    sent = {
        "CacheControl": "no-cache",
        "ContentDisposition": 'attachment; filename="a"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de",
        "ContentType": "text/plain",
        "Metadata": {"one": "1", "two-words": "a b"},
    }
    expires = datetime.datetime(2031, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    c.put("a", b"x", Expires=expires, **sent)
    for answer in (c.head("a"), c.get("a")):
        for name, value in sent.items():
            equal(answer[name], value, name)
        equal(answer["ExpiresString"], "Thu, 02 Jan 2031 03:04:05 GMT")
    got = c.get("a", ResponseContentType="text/other")
    equal(got["ContentType"], "text/other")


@check
def conditional_reads(c):
    etag = c.put("a", b"x")["ETag"]
    past = datetime.datetime(2015, 1, 1, tzinfo=datetime.timezone.utc)
    modified = c.head("a")["LastModified"]
    for operation in (c.get, c.head):
        operation("a", IfMatch=etag)
        operation("a", IfNoneMatch='"other"')
        operation("a", IfModifiedSince=past)
        operation("a", IfUnmodifiedSince=modified)
        code_412 = "PreconditionFailed" if operation == c.get else "412"
        for condition in ({"IfMatch": '"other"'}, {"IfUnmodifiedSince": past}):
            with refused(code_412, 412):
                operation("a", **condition)
        for condition in ({"IfNoneMatch": etag}, {"IfModifiedSince": modified}):
            with refused("304", 304):
                operation("a", **condition)


@check
def conditional_writes(c):
    etag = c.put("a", b"one", IfNoneMatch="*")["ETag"]
    with refused("PreconditionFailed", 412):
        c.put("a", b"two", IfNoneMatch="*")
    with refused("PreconditionFailed", 412):
        c.put("a", b"two", IfMatch='"other"')
    c.put("a", b"two", IfMatch=etag)
    equal(c.read("a"), b"two")


@check
def deletes(c):
    keys = [f"k/{number} &<>" for number in range(25)]
    for key in keys:
        c.put(key)
    c.s3.delete_object(Bucket=c.bucket, Key=keys[0])
    with refused("NoSuchKey", 404):
        c.get(keys[0])
    with refused("404", 404):
        c.head(keys[0])
    done = c.s3.delete_objects(Bucket=c.bucket, Delete={"Objects": [{"Key": key} for key in keys[:20]]})
    equal(sorted(entry["Key"] for entry in done["Deleted"]), sorted(keys[:20]))
    done = c.s3.delete_objects(
        Bucket=c.bucket, Delete={"Objects": [{"Key": key} for key in keys[20:]], "Quiet": True}
    )
    assert not done.get("Deleted") and not done.get("Errors"), done
    equal(c.keys(), [])


@check
def copies(c):
    body = os.urandom(5 << 20)
    c.put("dir/a b+\u00e9", body, ContentType="text/a", Metadata={"m": "1"})
    source = {"Bucket": c.bucket, "Key": "dir/a b+\u00e9"}
    c.s3.copy_object(Bucket=c.bucket, Key="copy", CopySource=source)
    got = c.get("copy")
    equal((got["ContentType"], got["Metadata"]), ("text/a", {"m": "1"}))
    assert got["Body"].read() == body
    c.s3.copy_object(
        Bucket=c.bucket, Key="copy", CopySource=source, MetadataDirective="REPLACE", Metadata={"n": "2"}
    )
    equal(c.head("copy")["Metadata"], {"n": "2"})
    with refused("NoSuchKey", 404):
        c.s3.copy_object(Bucket=c.bucket, Key="x", CopySource={"Bucket": c.bucket, "Key": "missing"})


@check
def presigned_urls(c):
    http = urllib3.PoolManager(ca_certs=c.zone.ca)
    body = os.urandom(70_000)
    params = {"Bucket": c.bucket, "Key": "signed \u00e9"}
    s3 = c.zone.client(signature_version="s3v4")
    put = http.request("PUT", s3.generate_presigned_url("put_object", params, ExpiresIn=60), body=body)
    equal(put.status, 200, put.data)
    url = s3.generate_presigned_url("get_object", params, ExpiresIn=60)
    equal(http.request("GET", url).data == body, True)
    equal(http.request("GET", url[:-1] + ("0" if url[-1] != "0" else "1")).status, 403)
    over = s3.generate_presigned_url("get_object", params, ExpiresIn=604_801)
    equal(http.request("GET", over).status, 400)


@check
def awkward_keys(c):
    keys = ["a/", "a//", "//", "/", "/a", "..", "../x", ".", "./x", " ", "a b", "a+b", "%2F", "a?b#c&d=e", "\u00e9", "e\u0301"]
    keys += ["\u65e5\u672c", "\U0001f980", "\uff5e", "quote'\"", "<xml>&amp;", "back\\slash", "\u00e9" * 512, "k" * 1024]
    keys += [f"c{chr(control)}d" for control in range(0, 32)] + ["del\x7f"]
    for key in keys:
        c.put(key, key.encode())
    for key in keys:
        equal(c.read(key), key.encode(), repr(key))
    equal(c.keys(), sorted(keys, key=str.encode))
    c.s3.delete_objects(
        Bucket=c.bucket, Delete={"Objects": [{"Key": key} for key in keys if key.isprintable()]}
    )
    for key in keys:
        c.s3.delete_object(Bucket=c.bucket, Key=key)
    equal(c.keys(), [])


@check
def wrong_credentials(c):
    wrong = c.zone.client()
    wrong._request_signer._credentials.secret_key = "wrong"
    with refused("SignatureDoesNotMatch", 403):
        wrong.get_object(Bucket=c.bucket, Key="a")
    with refused("SignatureDoesNotMatch", 403):
        wrong.put_object(Bucket=c.bucket, Key="a", Body=b"x")
    with refused("NoSuchKey", 404):
        c.get("a")
