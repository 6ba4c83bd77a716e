use proptest::prelude::*;

use super::*;
use crate::sigv4::Authorization;

type Decoded = (Vec<u8>, Vec<(String, String)>);

fn decode(mut decoder: Decoder, pieces: &[&[u8]]) -> Result<Decoded, BodyError> {
    let mut data = Vec::new();
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        while let Some(chunk) = decoder.next(&mut input)? {
            data.extend_from_slice(&chunk);
        }
    }
    Ok((data, decoder.finish()?))
}

fn unsigned() -> Decoder {
    Decoder::new(None, true)
}

#[test]
fn an_unsigned_stream_with_its_trailer() {
    let body = b"4\r\nWiki\r\nA\r\n0123456789\r\n0\r\nx-amz-checksum-crc32:y/Q5Jg==\r\n\r\n";
    let (data, trailers) = decode(unsigned(), &[body]).unwrap();
    assert_eq!(data, b"Wiki0123456789");
    assert_eq!(trailers, [("x-amz-checksum-crc32".to_owned(), "y/Q5Jg==".to_owned())]);
}

#[test]
fn a_stream_without_its_final_chunk_is_short() {
    for body in [&b""[..], b"4\r\nWiki\r\n", b"4\r\nWik", b"4\r\nWiki\r\n0"] {
        assert_eq!(decode(unsigned(), &[body]).unwrap_err(), BodyError::Short, "{body:?}");
    }
}

#[test]
fn broken_framing_is_refused() {
    for body in [
        &b"4\r\nWikipedia\r\n0\r\n\r\n"[..],
        b"g\r\n",
        b"4;foo=bar\r\n",
        b"-1\r\n",
        b"fffffffffffffffff\r\n",
        b"4\nWiki\r\n",
        b"4;chunk-signature=00\r\nWiki\r\n",
    ] {
        assert!(matches!(decode(unsigned(), &[body]).unwrap_err(), BodyError::Framing(_)), "{body:?}");
    }
    assert!(matches!(decode(unsigned(), &[&[b'1'; 2000]]).unwrap_err(), BodyError::Framing(_)));
    assert!(matches!(decode(unsigned(), &[b"0\r\n", &[b'a'; 20_000]]).unwrap_err(), BodyError::Framing(_)));
    assert!(matches!(decode(unsigned(), &[b"0\r\nnonsense\r\n"]).unwrap_err(), BodyError::Trailer(_)));
    assert!(matches!(
        decode(Decoder::new(None, false), &[b"0\r\na:b\r\n"]).unwrap_err(),
        BodyError::Trailer(_)
    ));
}

fn signer() -> ChunkSigner {
    let header = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host,Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
    let authorization = Authorization::parse(header).unwrap();
    ChunkSigner::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", authorization, "20130524T000000Z").unwrap()
}

fn documented_example() -> Vec<u8> {
    let mut body =
        b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
            .to_vec();
    body.extend_from_slice(&[b'a'; 65536]);
    body.extend_from_slice(
        b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n",
    );
    body.extend_from_slice(&[b'a'; 1024]);
    body.extend_from_slice(
        b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n",
    );
    body
}

#[test]
fn a_signed_stream_verifies_every_chunk() {
    let body = documented_example();
    let (data, trailers) = decode(Decoder::new(Some(signer()), false), &[&body]).unwrap();
    assert_eq!(data.len(), 66_560);
    assert!(trailers.is_empty());

    let mut changed = body.clone();
    changed[1000] = b'b';
    assert_eq!(
        decode(Decoder::new(Some(signer()), false), &[&changed]).unwrap_err(),
        BodyError::ChunkSignature
    );
    assert_eq!(
        decode(Decoder::new(Some(signer()), false), &[b"1\r\na\r\n"]).unwrap_err(),
        BodyError::ChunkSignature
    );
    // Cut before the final chunk: what arrived is signed, and still not all.
    let cut = body.len() - 90;
    assert_eq!(decode(Decoder::new(Some(signer()), false), &[&body[..cut]]).unwrap_err(), BodyError::Short);
}

#[test]
fn signed_trailers_need_their_signature() {
    let mut body = documented_example();
    body.truncate(body.len() - 2);
    body.extend_from_slice(b"x-amz-checksum-crc32c:sOO8/Q==\n");
    assert!(matches!(decode(Decoder::new(Some(signer()), true), &[&body]), Err(BodyError::Trailer(_))));
    body.extend_from_slice(
        b"x-amz-trailer-signature:63bddb248ad2590c92712055f51b8e78ab024eead08276b24f010b0efd74843f\r\n\r\n",
    );
    assert_eq!(decode(Decoder::new(Some(signer()), true), &[&body]).unwrap_err(), BodyError::ChunkSignature);
}

proptest! {
    #[test]
    fn any_split_of_the_wire_gives_the_same_bytes(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 0..8),
        cut in 1usize..40,
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        let pieces: Vec<&[u8]> = wire.chunks(cut).collect();
        let (data, trailers) = decode(unsigned(), &pieces).unwrap();
        prop_assert_eq!(data, chunks.concat());
        prop_assert_eq!(trailers.len(), 1);
    }

    #[test]
    fn arbitrary_bytes_never_panic(wire in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(unsigned(), &[&wire]);
        let _ = decode(Decoder::new(Some(signer()), true), &[&wire]);
    }
}
