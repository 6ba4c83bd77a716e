//! What the protocol library's XML lacks: the ids in an error, and characters that XML 1.0 cannot hold.

use bytes::Bytes;

/// The error document with `Resource`, `RequestId` and `HostId`; `None` when it is not an error document.
pub(crate) fn complete_error(document: &[u8], path: &str, request_id: &str, host_id: &str) -> Option<Bytes> {
    let open = document.strip_suffix(b"</Error>")?;
    let mut out = Vec::with_capacity(document.len() + path.len() + 160);
    out.extend_from_slice(open);
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
        let out = complete_error(b"<Error><Code>X</Code></Error>", "/b/<k>&", "ID", "HOST").unwrap();
        assert_eq!(
            out,
            &b"<Error><Code>X</Code><Resource>/b/&lt;k&gt;&amp;</Resource><RequestId>ID</RequestId><HostId>HOST</HostId></Error>"[..]
        );
        assert!(complete_error(b"<Other/>", "/", "", "").is_none());
    }

    #[test]
    fn control_characters_become_references() {
        let out = escape_controls(Bytes::from_static(b"<Key>a\rb\x01\tc\nd</Key>"));
        assert_eq!(out, &b"<Key>a&#xD;b&#x1;\tc\nd</Key>"[..]);
        let plain = Bytes::from_static("<Key>ä</Key>".as_bytes());
        assert_eq!(escape_controls(plain.clone()), plain);
    }
}
