//! Which query keys and headers each implemented operation takes. Whatever is not listed is refused as not implemented:
//! a subresource, a condition or a header that S3 documents is never silently ignored.
//!
//! The check runs after the signature and before the operation reads its input. AWS ignores unknown query keys that
//! start with `x-` (they exist for access logs), and so does this.

use http::HeaderMap;

use crate::error::{S3Result, not_implemented};

/// One implemented operation.
#[derive(Debug)]
pub(crate) struct Operation {
    /// S3's name of it.
    pub name: &'static str,
    /// Query keys that it understands, besides those of a presigned URL.
    query: &'static [&'static str],
    /// Headers that it understands without their `x-amz-`, besides those common to all.
    headers: &'static [&'static str],
    /// Conditional headers that it honours.
    conditions: &'static [&'static str],
    /// Whether it takes `x-amz-meta-*`.
    user_metadata: bool,
}

const COMMON_QUERY: &[&str] = &[
    "x-id",
    "X-Amz-Algorithm",
    "X-Amz-Content-Sha256",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
];
/// `te` asks for an MD5 appended to the body, which S3 may leave out; `cf-id` and `user-agent` say who is asking.
const COMMON_HEADERS: &[&str] =
    &["cf-id", "content-sha256", "date", "expected-bucket-owner", "request-payer", "te", "user-agent"];
/// Headers that are taken with these values only; any other value asks for something that is not here.
const VALUES: &[(&str, &[&str])] = &[
    ("acl", &["private", "bucket-owner-full-control"]),
    ("bucket-object-lock-enabled", &["false", "False"]),
    ("object-ownership", &["BucketOwnerEnforced"]),
    ("request-payer", &["requester"]),
    ("tagging-directive", &["COPY"]),
];
const CONDITIONAL: &[&str] =
    &["if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since"];

const READ_QUERY: &[&str] = &[
    "partNumber",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "versionId",
    "x-amz-checksum-mode",
];
const CHECKED_BODY: &[&str] = &[
    "checksum-crc32",
    "checksum-crc32c",
    "checksum-crc64nvme",
    "checksum-sha1",
    "checksum-sha256",
    "decoded-content-length",
    "sdk-checksum-algorithm",
    "trailer",
];
const CHECKED_XML: &[&str] = &[
    "checksum-crc32",
    "checksum-crc32c",
    "checksum-crc64nvme",
    "checksum-sha1",
    "checksum-sha256",
    "sdk-checksum-algorithm",
];

const fn plain(name: &'static str, query: &'static [&'static str]) -> Operation {
    Operation { name, query, headers: &[], conditions: &[], user_metadata: false }
}

/// Sorted by name.
static OPERATIONS: &[Operation] = &[
    plain("AbortMultipartUpload", &["uploadId"]),
    Operation {
        headers: &[
            "checksum-crc32",
            "checksum-crc32c",
            "checksum-crc64nvme",
            "checksum-sha1",
            "checksum-sha256",
            "checksum-type",
            "mp-object-size",
            "sdk-checksum-algorithm",
        ],
        conditions: &["if-match", "if-none-match"],
        ..plain("CompleteMultipartUpload", &["uploadId"])
    },
    Operation {
        headers: &[
            "acl",
            "checksum-algorithm",
            "copy-source",
            "copy-source-if-match",
            "copy-source-if-modified-since",
            "copy-source-if-none-match",
            "copy-source-if-unmodified-since",
            "metadata-directive",
            "source-expected-bucket-owner",
            "storage-class",
            "tagging-directive",
        ],
        conditions: &["if-match", "if-none-match"],
        user_metadata: true,
        ..plain("CopyObject", &[])
    },
    Operation {
        headers: &["acl", "bucket-object-lock-enabled", "object-ownership", "sdk-checksum-algorithm"],
        ..plain("CreateBucket", &[])
    },
    Operation {
        headers: &["acl", "checksum-algorithm", "checksum-type", "storage-class"],
        user_metadata: true,
        ..plain("CreateMultipartUpload", &["uploads"])
    },
    plain("DeleteBucket", &[]),
    Operation {
        headers: &["if-match-last-modified-time", "if-match-size"],
        conditions: &["if-match"],
        ..plain("DeleteObject", &["versionId"])
    },
    Operation { headers: CHECKED_XML, ..plain("DeleteObjects", &["delete"]) },
    plain("GetBucketAcl", &["acl"]),
    plain("GetBucketLocation", &["location"]),
    plain("GetBucketVersioning", &["versioning"]),
    Operation { headers: &["checksum-mode"], conditions: CONDITIONAL, ..plain("GetObject", READ_QUERY) },
    plain("GetObjectAcl", &["acl", "versionId"]),
    Operation {
        headers: &["max-parts", "object-attributes", "part-number-marker"],
        ..plain("GetObjectAttributes", &["attributes", "versionId"])
    },
    plain("HeadBucket", &[]),
    Operation { headers: &["checksum-mode"], conditions: CONDITIONAL, ..plain("HeadObject", READ_QUERY) },
    plain("ListBuckets", &["bucket-region", "continuation-token", "max-buckets", "prefix"]),
    plain(
        "ListMultipartUploads",
        &["delimiter", "encoding-type", "key-marker", "max-uploads", "prefix", "upload-id-marker", "uploads"],
    ),
    Operation {
        headers: &["optional-object-attributes"],
        ..plain("ListObjects", &["delimiter", "encoding-type", "marker", "max-keys", "prefix"])
    },
    Operation {
        headers: &["optional-object-attributes"],
        ..plain(
            "ListObjectsV2",
            &[
                "continuation-token",
                "delimiter",
                "encoding-type",
                "fetch-owner",
                "list-type",
                "max-keys",
                "prefix",
                "start-after",
            ],
        )
    },
    plain("ListParts", &["max-parts", "part-number-marker", "uploadId"]),
    Operation {
        headers: &[
            "acl",
            "checksum-algorithm",
            "checksum-crc32",
            "checksum-crc32c",
            "checksum-crc64nvme",
            "checksum-sha1",
            "checksum-sha256",
            "decoded-content-length",
            "sdk-checksum-algorithm",
            "storage-class",
            "trailer",
        ],
        conditions: &["if-match", "if-none-match"],
        user_metadata: true,
        ..plain("PutObject", &["x-amz-sdk-checksum-algorithm"])
    },
    Operation { headers: CHECKED_BODY, ..plain("UploadPart", &["partNumber", "uploadId"]) },
    Operation {
        headers: &[
            "copy-source",
            "copy-source-if-match",
            "copy-source-if-modified-since",
            "copy-source-if-none-match",
            "copy-source-if-unmodified-since",
            "copy-source-range",
            "source-expected-bucket-owner",
        ],
        ..plain("UploadPartCopy", &["partNumber", "uploadId"])
    },
];

/// The operation of that name, when it is implemented.
pub(crate) fn operation(name: &str) -> Option<&'static Operation> {
    OPERATIONS.binary_search_by(|operation| operation.name.cmp(name)).ok().map(|at| &OPERATIONS[at])
}

impl Operation {
    /// Refuses what this operation does not understand of a request.
    ///
    /// # Errors
    /// NotImplemented, naming the first query key or header that is not served.
    pub(crate) fn check(&self, query: Option<&str>, headers: &HeaderMap) -> S3Result<()> {
        for key in query.into_iter().flat_map(query_keys) {
            let known = self.query.contains(&key)
                || COMMON_QUERY.contains(&key)
                || (key.starts_with("x-") && !key.starts_with("x-amz-"));
            if !known {
                let key: String = key.chars().take(80).collect();
                return Err(not_implemented(format!("the query parameter {key:?} is not implemented here")));
            }
        }
        for (name, value) in headers {
            let name = name.as_str();
            let Some(amz) = name.strip_prefix("x-amz-") else {
                if CONDITIONAL.contains(&name) && !self.conditions.contains(&name) {
                    return Err(header_refused(name));
                }
                continue;
            };
            if amz.starts_with("meta-") {
                if !self.user_metadata {
                    return Err(header_refused(name));
                }
                continue;
            }
            if !self.headers.contains(&amz) && !COMMON_HEADERS.contains(&amz) {
                return Err(header_refused(name));
            }
            if let Some((_, values)) = VALUES.iter().find(|(header, _)| *header == amz)
                && !values.iter().any(|allowed| allowed.as_bytes() == value.as_bytes())
            {
                return Err(not_implemented(format!("this value of the header {name} is not implemented")));
            }
        }
        Ok(())
    }
}

fn header_refused(name: &str) -> crate::error::S3Error {
    not_implemented(format!("a header you provided implies functionality that is not implemented: {name}"))
}

/// The keys of a query string as they were sent. A key that needs percent-decoding is none of ours.
pub(crate) fn query_keys(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next().unwrap_or(pair))
}

/// The raw value of a query key; `None` when it is absent, empty when it has no value.
pub(crate) fn query_value<'q>(query: &'q str, key: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((name, value)) => (name == key).then_some(value),
        None => (pair == key).then_some(""),
    })
}

#[cfg(test)]
#[path = "surface_test.rs"]
mod tests;
