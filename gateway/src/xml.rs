//! What the protocol library's XML lacks: the ids in an error, and characters that XML 1.0 cannot hold.

use bytes::Bytes;

/// The error document with `Resource`, `RequestId` and `HostId`; `None` when it is not an error document.
pub(crate) fn complete_error(document: &[u8], path: &str, request_id: &str, host_id: &str) -> Option<Bytes> {
    let open = document.strip_suffix(b"</Error>")?;
    let mut out = Vec::with_capacity(document.len() + path.len() + 160);
    out.extend_from_slice(open);
    if !contains(open, b"<Message>") {
        out.extend_from_slice(b"<Message>");
        out.extend_from_slice(default_message(open).as_bytes());
        out.extend_from_slice(b"</Message>");
    }
    out.extend_from_slice(b"<Resource>");
    for byte in path.bytes() {
        match byte {
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            b'&' => out.extend_from_slice(b"&amp;"),
            other => out.push(other),
        }
    }
    out.extend_from_slice(b"</Resource>");
    for (name, value) in [("RequestId", request_id), ("HostId", host_id)] {
        out.extend_from_slice(format!("<{name}>{value}</{name}>").as_bytes());
    }
    out.extend_from_slice(b"</Error>");
    Some(out.into())
}

/// Whether a document is the error of that code.
pub(crate) fn is_error(document: &[u8], code: &str) -> bool {
    contains(document, format!("<Error><Code>{code}</Code>").as_bytes())
}

fn contains(document: &[u8], what: &[u8]) -> bool {
    document.windows(what.len()).any(|window| window == what)
}

/// What the protocol library's own refusals leave unsaid.
fn default_message(error: &[u8]) -> &'static str {
    const MESSAGES: [(&[u8], &str); 7] = [
        (
            b"<Code>IncompleteBody<",
            "you did not provide the number of bytes specified by the Content-Length header",
        ),
        (b"<Code>InvalidBucketName<", "the specified bucket is not valid"),
        (b"<Code>InvalidURI<", "the specified URI could not be parsed"),
        (b"<Code>KeyTooLongError<", "your key is too long"),
        (
            b"<Code>MalformedXML<",
            "the XML you provided was not well-formed or did not validate against our published schema",
        ),
        (b"<Code>MaxMessageLengthExceeded<", "your request was too big"),
        (
            b"<Code>SignatureDoesNotMatch<",
            "the request signature we calculated does not match the signature you provided; check your key and signing method",
        ),
    ];
    MESSAGES
        .iter()
        .find(|(code, _)| contains(error, code))
        .map_or("the request cannot be served", |(_, message)| message)
}

/// GetObjectAttributes shows the ETag without quotes, unlike every other answer.
pub(crate) fn unquote_etag(document: &[u8]) -> Option<Bytes> {
    let (open, close) = (b"<ETag>\"".as_slice(), b"\"</ETag>".as_slice());
    let find = |what: &[u8]| document.windows(what.len()).position(|window| window == what);
    let (start, end) = (find(open)? + open.len(), find(close)?);
    Some([&document[..start - 1], document.get(start..end)?, &document[end + 1..]].concat().into())
}

/// Character references in place of control characters, as S3 writes them. A parser would take a bare carriage return for
/// a line feed; the others have no form in XML 1.0 at all, which is what `encoding-type=url` is for.
pub(crate) fn escape_controls(document: Bytes) -> Bytes {
    let is_control = |byte: u8| byte < 0x20 && byte != b'\t' && byte != b'\n';
    if !document.iter().copied().any(is_control) {
        return document;
    }
    let mut out = Vec::with_capacity(document.len() + 64);
    for byte in document.iter().copied() {
        if is_control(byte) {
            out.extend_from_slice(format!("&#x{byte:X};").as_bytes());
        } else {
            out.push(byte);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_request() {
        let error = b"<Error><Code>X</Code><Message>m</Message></Error>";
        let out = complete_error(error, "/b/<k>&", "ID", "HOST").unwrap();
        assert_eq!(
            out,
            &b"<Error><Code>X</Code><Message>m</Message><Resource>/b/&lt;k&gt;&amp;</Resource><RequestId>ID</RequestId><HostId>HOST</HostId></Error>"[..]
        );
        assert!(complete_error(b"<Other/>", "/", "", "").is_none());
    }

    #[test]
    fn errors_have_a_message() {
        let out = complete_error(b"<Error><Code>KeyTooLongError</Code></Error>", "/", "", "").unwrap();
        assert!(contains(&out, b"<Message>your key is too long</Message>"));
        assert!(is_error(&out, "KeyTooLongError") && !is_error(&out, "KeyTooLong"));
        let out = complete_error(b"<Error><Code>X</Code></Error>", "/", "", "").unwrap();
        assert!(contains(&out, b"<Message>the request cannot be served</Message>"));
    }

    #[test]
    fn an_etag_among_attributes_has_no_quotes() {
        let out = unquote_etag(b"<A><ETag>\"abc-2\"</ETag><B/></A>").unwrap();
        assert_eq!(out, &b"<A><ETag>abc-2</ETag><B/></A>"[..]);
        assert!(unquote_etag(b"<A/>").is_none());
    }

    #[test]
    fn control_characters_become_references() {
        let out = escape_controls(Bytes::from_static(b"<Key>a\rb\x01\tc\nd</Key>"));
        assert_eq!(out, &b"<Key>a&#xD;b&#x1;\tc\nd</Key>"[..]);
        let plain = Bytes::from_static("<Key>ä</Key>".as_bytes());
        assert_eq!(escape_controls(plain.clone()), plain);
    }
}
