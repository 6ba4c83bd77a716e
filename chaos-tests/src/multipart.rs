//! Multipart uploads, one call at a time.

use bytes::Bytes;

use crate::s3::{Answer, Call, S3};

/// One upload in progress.
#[derive(Clone, Debug)]
pub struct Upload {
    s3: S3,
    bucket: String,
    key: Vec<u8>,
    pub id: String,
}

impl Upload {
    /// Starts an upload.
    pub async fn create(s3: &S3, bucket: &str, key: impl AsRef<[u8]>) -> Self {
        Self::create_with(s3, bucket, key, |call| call).await
    }

    /// Starts an upload whose request `adjust` completes with headers.
    pub async fn create_with(
        s3: &S3,
        bucket: &str,
        key: impl AsRef<[u8]>,
        adjust: impl FnOnce(Call) -> Call,
    ) -> Self {
        let call = adjust(s3.call("POST", bucket, &key).query("uploads", ""));
        let id = call.expect(200).await.tree().get("UploadId").to_owned();
        assert!(!id.is_empty());
        Self { s3: s3.clone(), bucket: bucket.to_owned(), key: key.as_ref().to_vec(), id }
    }

    /// An upload that was started by a call of one's own.
    pub fn begun(s3: &S3, bucket: &str, key: impl AsRef<[u8]>, id: &str) -> Self {
        Self { s3: s3.clone(), bucket: bucket.to_owned(), key: key.as_ref().to_vec(), id: id.to_owned() }
    }

    /// The same upload under an id that was made up.
    pub fn with_id(&self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self.clone() }
    }

    pub fn call(&self, method: &'static str) -> Call {
        self.s3.call(method, &self.bucket, &self.key).query("uploadId", &self.id)
    }

    pub fn put(&self, number: u32, body: impl Into<Bytes>) -> Call {
        self.call("PUT").query("partNumber", number.to_string()).body(body)
    }

    /// Stores a part; its ETag.
    pub async fn part(&self, number: u32, body: impl Into<Bytes>) -> String {
        self.put(number, body).expect(200).await.header("etag").to_owned()
    }

    pub fn complete(&self, parts: &[(u32, String)]) -> Call {
        self.complete_with(parts.iter().map(|(number, etag)| (*number, etag.clone(), String::new())))
    }

    /// Completes with more elements in each part, such as checksums, given as XML.
    pub fn complete_with(&self, parts: impl IntoIterator<Item = (u32, String, String)>) -> Call {
        let mut body =
            String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        for (number, etag, more) in parts {
            body.push_str(&format!(
                "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag>{more}</Part>",
                etag.replace('"', "&quot;")
            ));
        }
        body.push_str("</CompleteMultipartUpload>");
        self.call("POST").body(body)
    }

    pub async fn abort(&self) -> Answer {
        self.call("DELETE").expect(204).await
    }
}
