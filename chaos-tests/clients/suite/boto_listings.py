"""boto3: listings, versions 1 and 2."""

import concurrent.futures

from .checks import check, equal


def fill(c, keys):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(c.put, keys))


@check
def order_and_pages(c):
    keys = ["b", "B", "a", "a/", "a-", "a0", "\u00e9", "~", "\uff5e", "\U0001f980", "dir/x y", "dir/\x01"]
    fill(c, keys)
    expected = sorted(keys, key=str.encode)
    for page in (1, 3, 1000):
        equal(c.keys(PaginationConfig={"PageSize": page}), expected, f"v2, pages of {page}")
        pages = c.s3.get_paginator("list_objects").paginate(
            Bucket=c.bucket, PaginationConfig={"PageSize": page}
        )
        equal([entry["Key"] for one in pages for entry in one["Contents"]], expected, f"v1, pages of {page}")


@check
def prefixes_and_delimiters(c):
    fill(c, ["a", "b/1", "b/2", "b/c/3", "c d/1", "e::1"])
    for operation in (c.s3.list_objects, c.s3.list_objects_v2):
        page = operation(Bucket=c.bucket, Delimiter="/")
        equal([entry["Key"] for entry in page["Contents"]], ["a", "e::1"])
        equal([entry["Prefix"] for entry in page["CommonPrefixes"]], ["b/", "c d/"])
        page = operation(Bucket=c.bucket, Delimiter="/", Prefix="b/")
        equal([entry["Key"] for entry in page["Contents"]], ["b/1", "b/2"])
        equal([entry["Prefix"] for entry in page["CommonPrefixes"]], ["b/c/"])
        page = operation(Bucket=c.bucket, Delimiter="::")
        equal([entry["Prefix"] for entry in page["CommonPrefixes"]], ["e::"])
        page = operation(Bucket=c.bucket, MaxKeys=2)
        equal((len(page["Contents"]), page["IsTruncated"]), (2, True))
    pages = c.s3.get_paginator("list_objects_v2").paginate(
        Bucket=c.bucket, Delimiter="/", PaginationConfig={"PageSize": 1}
    )
    seen = [
        name
        for page in pages
        for name in [entry["Key"] for entry in page.get("Contents", [])]
        + [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
    ]
    equal(seen, ["a", "b/", "c d/", "e::1"])


@check
def start_after_and_owner(c):
    fill(c, ["a", "b", "c"])
    page = c.s3.list_objects_v2(Bucket=c.bucket, StartAfter="a", FetchOwner=True)
    equal([entry["Key"] for entry in page["Contents"]], ["b", "c"])
    equal(page["KeyCount"], 2)
    assert page["Contents"][0]["Owner"]["ID"]
    page = c.s3.list_objects(Bucket=c.bucket, Marker="b")
    equal([entry["Key"] for entry in page["Contents"]], ["c"])
    page = c.s3.list_objects_v2(Bucket=c.bucket, StartAfter="c")
    equal((page["KeyCount"], page["IsTruncated"]), (0, False))


@check
def url_encoding(c):
    fill(c, ["a b+c/\u00e9&", "a b+c/z"])
    page = c.s3.list_objects_v2(Bucket=c.bucket, EncodingType="url", Delimiter="/")
    assert page["CommonPrefixes"][0]["Prefix"] in ("a%20b%2Bc/", "a+b%2Bc/"), page
    page = c.s3.list_objects_v2(Bucket=c.bucket, EncodingType="url", Prefix="a b+c/\u00e9")
    assert page["Contents"][0]["Key"] in ("a%20b%2Bc/%C3%A9%26", "a+b%2Bc/%C3%A9%26"), page


@check
def more_than_a_thousand(c):
    keys = [f"{number:05}" for number in range(1100)]
    fill(c, keys)
    page = c.s3.list_objects_v2(Bucket=c.bucket)
    equal((page["KeyCount"], page["IsTruncated"]), (1000, True))
    equal(c.keys(), keys)
    done = c.s3.delete_objects(
        Bucket=c.bucket, Delete={"Objects": [{"Key": key} for key in keys[:1000]], "Quiet": True}
    )
    assert "Errors" not in done, done
    equal(c.keys(), keys[1000:])
