//! Listings: exact byte order, delimiters, pages that neither repeat nor skip, and S3's rules at every edge.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use holdfast_chaos::cluster::Zone;
use holdfast_chaos::s3::{Call, S3};
use holdfast_chaos::sums;
use holdfast_chaos::xml::Element;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn client() -> S3 {
    Zone::shared().s3()
}

async fn bucket_of<T: AsRef<str>>(s3: &S3, keys: &[T]) -> String {
    let bucket = s3.bucket("listings").await;
    stream::iter(keys)
        .for_each_concurrent(8, |key| {
            let call = s3.put(&bucket, key.as_ref(), key.as_ref().to_owned());
            async move { drop(call.expect(200).await) }
        })
        .await;
    bucket
}

async fn v2(s3: &S3, bucket: &str, query: &[(&str, &str)]) -> Element {
    with(s3.get(bucket, "").query("list-type", "2"), query).expect(200).await.tree()
}

async fn v1(s3: &S3, bucket: &str, query: &[(&str, &str)]) -> Element {
    with(s3.get(bucket, ""), query).expect(200).await.tree()
}

fn with(call: Call, query: &[(&str, &str)]) -> Call {
    query.iter().fold(call, |call, (name, value)| call.query(name, value))
}

/// Keys and common prefixes of a page, in the order of the answer.
fn entries(page: &Element) -> (Vec<String>, Vec<String>) {
    (page.texts("Contents", "Key"), page.texts("CommonPrefixes", "Prefix"))
}

#[tokio::test]
async fn order_is_that_of_bytes_not_of_letters_or_utf16() {
    let s3 = client();
    // U+FF5E sorts after U+1F980 in UTF-16 and before it in UTF-8.
    let keys = [
        "b",
        "B",
        "a",
        "a/",
        "a-",
        "a0",
        "A",
        "\u{e9}",
        "z",
        "~",
        "!",
        "\u{ff5e}",
        "\u{1f980}",
        "aa",
        "a\u{300}",
    ];
    let bucket = bucket_of(&s3, &keys).await;
    let mut expected: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    expected.sort();
    assert_eq!(entries(&v2(&s3, &bucket, &[]).await).0, expected);
    assert_eq!(entries(&v1(&s3, &bucket, &[]).await).0, expected);
    for page in [1, 2, 4, 1000] {
        assert_eq!(s3.keys(&bucket, page).await.unwrap(), expected, "pages of {page}");
    }
}

#[tokio::test]
async fn an_entry_says_what_a_head_says() {
    let s3 = client();
    let bucket = bucket_of(&s3, &["one"]).await;
    let page = v2(&s3, &bucket, &[("fetch-owner", "true")]).await;
    assert_eq!(page.name, "ListBucketResult");
    assert_eq!((page.get("Name"), page.get("KeyCount"), page.get("MaxKeys")), (bucket.as_str(), "1", "1000"));
    assert_eq!(page.get("IsTruncated"), "false");
    let entry = page.child("Contents").unwrap();
    assert_eq!((entry.get("Key"), entry.get("Size")), ("one", "3"));
    assert_eq!(entry.get("ETag"), sums::etag(b"one"));
    assert_eq!(entry.get("StorageClass"), "STANDARD");
    assert!(entry.get("LastModified").ends_with('Z'), "{entry:?}");
    assert!(!entry.child("Owner").unwrap().get("ID").is_empty());
    // Without asking, version 2 names no owner; version 1 always does.
    assert!(v2(&s3, &bucket, &[]).await.child("Contents").unwrap().child("Owner").is_none());
    assert!(v1(&s3, &bucket, &[]).await.child("Contents").unwrap().child("Owner").is_some());
}

#[tokio::test]
async fn an_empty_bucket_lists_nothing() {
    let s3 = client();
    let bucket = s3.bucket("listings").await;
    let page = v2(&s3, &bucket, &[]).await;
    assert_eq!((page.get("KeyCount"), page.get("IsTruncated")), ("0", "false"));
    assert_eq!(page.all("Contents").count(), 0);
}

#[tokio::test]
async fn delimiters_fold_and_prefixes_select() {
    let s3 = client();
    let keys = ["a", "b/", "b/1", "b/2", "b/c/1", "b/c/2", "c", "d//x", "d/y", "e::1", "e::2"];
    let bucket = bucket_of(&s3, &keys).await;
    let list = async |query: &[(&str, &str)]| entries(&v2(&s3, &bucket, query).await);
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();

    assert_eq!(list(&[("delimiter", "/")]).await, (own(&["a", "c", "e::1", "e::2"]), own(&["b/", "d/"])));
    assert_eq!(
        list(&[("delimiter", "/"), ("prefix", "b/")]).await,
        (own(&["b/", "b/1", "b/2"]), own(&["b/c/"]))
    );
    assert_eq!(list(&[("delimiter", "/"), ("prefix", "b")]).await, (own(&[]), own(&["b/"])));
    assert_eq!(list(&[("delimiter", "/"), ("prefix", "d/")]).await, (own(&["d/y"]), own(&["d//"])));
    assert_eq!(list(&[("delimiter", "::"), ("prefix", "e")]).await, (own(&[]), own(&["e::"])));
    assert_eq!(list(&[("prefix", "b/c")]).await, (own(&["b/c/1", "b/c/2"]), own(&[])));
    assert_eq!(list(&[("prefix", "nothing")]).await, (own(&[]), own(&[])));
    assert_eq!(
        list(&[("start-after", "b/c/1")]).await.0,
        own(&["b/c/2", "c", "d//x", "d/y", "e::1", "e::2"])
    );
    assert_eq!(list(&[("start-after", "b/1"), ("delimiter", "/")]).await.1, own(&["b/", "d/"]));
    assert_eq!(list(&[("start-after", "zz")]).await, (own(&[]), own(&[])));
}

#[tokio::test]
async fn pages_count_keys_and_prefixes_together() {
    let s3 = client();
    let keys: Vec<String> =
        (0..40).map(|number| format!("{}/{number:02}", number % 5)).chain(["x".into(), "y".into()]).collect();
    let bucket = bucket_of(&s3, &keys).await;
    let first = v2(&s3, &bucket, &[("delimiter", "/"), ("max-keys", "3")]).await;
    assert_eq!(entries(&first), (vec![], vec!["0/".into(), "1/".into(), "2/".into()]));
    assert_eq!((first.get("KeyCount"), first.get("IsTruncated")), ("3", "true"));
    let token = first.get("NextContinuationToken").to_owned();
    let second =
        v2(&s3, &bucket, &[("delimiter", "/"), ("max-keys", "3"), ("continuation-token", &token)]).await;
    assert_eq!(entries(&second), (vec!["x".into()], vec!["3/".into(), "4/".into()]));
    assert_eq!(second.get("ContinuationToken"), token);

    // Exactly as many as there are: the page is the last one.
    let whole = v2(&s3, &bucket, &[("delimiter", "/"), ("max-keys", "7")]).await;
    assert_eq!((whole.get("KeyCount"), whole.get("IsTruncated")), ("7", "false"));
    assert!(whole.child("NextContinuationToken").is_none());
}

#[tokio::test]
async fn version_one_pages_by_marker() {
    let s3 = client();
    let bucket = bucket_of(&s3, &["a", "b/1", "b/2", "c", "d"]).await;
    let first = v1(&s3, &bucket, &[("max-keys", "2"), ("delimiter", "/")]).await;
    assert_eq!(entries(&first), (vec!["a".into()], vec!["b/".into()]));
    assert_eq!((first.get("IsTruncated"), first.get("NextMarker")), ("true", "b/"));
    let rest = v1(&s3, &bucket, &[("marker", "b/"), ("delimiter", "/")]).await;
    assert_eq!(entries(&rest), (vec!["c".into(), "d".into()], vec![]));
    // Without a delimiter the last key is the marker, and S3 names none.
    let plain = v1(&s3, &bucket, &[("max-keys", "2")]).await;
    assert_eq!(plain.texts("Contents", "Key"), ["a", "b/1"]);
    let rest = v1(&s3, &bucket, &[("marker", "b/1")]).await;
    assert_eq!(rest.texts("Contents", "Key"), ["b/2", "c", "d"]);
}

#[tokio::test]
async fn url_encoding_covers_every_name_in_the_answer() {
    let s3 = client();
    let bucket = bucket_of(&s3, &["d\u{e9} 1/a", "d\u{e9} 1/b", "e&<\u{1}>"]).await;
    let page = v2(
        &s3,
        &bucket,
        &[("encoding-type", "url"), ("delimiter", "/"), ("prefix", "d\u{e9}"), ("start-after", "d")],
    )
    .await;
    assert_eq!(page.get("EncodingType"), "url");
    assert_eq!(page.get("Prefix"), "d%C3%A9");
    assert_eq!(page.get("StartAfter"), "d");
    assert_eq!(page.get("Delimiter"), "/");
    assert_eq!(page.texts("CommonPrefixes", "Prefix").len(), 1);
    assert!(matches!(page.texts("CommonPrefixes", "Prefix")[0].as_str(), "d%C3%A9+1/" | "d%C3%A9%201/"));
    let page = v1(&s3, &bucket, &[("encoding-type", "url"), ("prefix", "e")]).await;
    assert_eq!(page.texts("Contents", "Key"), ["e%26%3C%01%3E"]);
}

#[tokio::test]
async fn page_sizes_have_their_bounds() {
    let s3 = client();
    let bucket = bucket_of(&s3, &["a", "b"]).await;
    let none = v2(&s3, &bucket, &[("max-keys", "0")]).await;
    assert_eq!((none.all("Contents").count(), none.get("IsTruncated")), (0, "false"));
    let many = v2(&s3, &bucket, &[("max-keys", "5000")]).await;
    assert_eq!(many.all("Contents").count(), 2);
    assert_eq!(many.get("MaxKeys"), "1000");
    let bad = |query: &[(&str, &str)]| with(s3.get(&bucket, "").query("list-type", "2"), query);
    bad(&[("max-keys", "-1")]).refused(400, "InvalidArgument").await;
    bad(&[("max-keys", "many")]).refused(400, "InvalidArgument").await;
    bad(&[("continuation-token", "not one of ours")]).refused(400, "InvalidArgument").await;
    bad(&[("encoding-type", "rot13")]).refused(400, "InvalidArgument").await;
}

#[tokio::test]
async fn more_than_a_page_of_keys() {
    let s3 = client();
    let keys: Vec<String> = (0..1203).map(|number| format!("k{number:05}")).collect();
    let bucket = bucket_of(&s3, &keys).await;
    let first = v2(&s3, &bucket, &[]).await;
    assert_eq!((first.get("KeyCount"), first.get("IsTruncated")), ("1000", "true"));
    assert_eq!(s3.keys(&bucket, 1000).await.unwrap(), keys);
}

/// What S3 lists, from its documentation: keys after `after`, folded at the delimiter; a common prefix that `after`
/// lies in is still listed unless it was what the last page ended with.
fn model(keys: &BTreeSet<String>, prefix: &str, delimiter: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for key in keys.iter().filter(|key| key.starts_with(prefix)) {
        let folded = match (!delimiter.is_empty()).then(|| key[prefix.len()..].find(delimiter)).flatten() {
            Some(at) => format!("P {}", &key[..prefix.len() + at + delimiter.len()]),
            None => format!("K {key}"),
        };
        if out.last() != Some(&folded) {
            out.push(folded);
        }
    }
    out
}

#[tokio::test]
async fn random_trees_list_as_the_model_says() {
    let s3 = client();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut keys = BTreeSet::new();
    while keys.len() < 120 {
        let length = rng.random_range(1..6);
        keys.insert(
            (0..length).map(|_| ["a", "b", "/", "-", "\u{e9}"][rng.random_range(0..5)]).collect::<String>(),
        );
    }
    let bucket = bucket_of(&s3, &keys.iter().collect::<Vec<_>>()).await;
    for _ in 0..25 {
        let prefix = ["", "a", "/", "a/", "b-", "\u{e9}"][rng.random_range(0..6)];
        let delimiter = ["", "/", "-", "a/"][rng.random_range(0..4)];
        let page = rng.random_range(1..9).to_string();
        let mut listed = Vec::new();
        let mut token = String::new();
        loop {
            let mut query = vec![("prefix", prefix), ("delimiter", delimiter), ("max-keys", page.as_str())];
            if !token.is_empty() {
                query.push(("continuation-token", &token));
            }
            let answer = v2(&s3, &bucket, &query).await;
            let (names, prefixes) = entries(&answer);
            assert_eq!(answer.get("KeyCount"), (names.len() + prefixes.len()).to_string());
            let tag = |tag: &str, names: Vec<String>| {
                names.into_iter().map(|name| format!("{tag} {name}")).collect::<Vec<_>>()
            };
            let mut entries = tag("K", names);
            entries.extend(tag("P", prefixes));
            entries.sort_by(|left, right| left[2..].cmp(&right[2..]));
            listed.extend(entries);
            if answer.get("IsTruncated") != "true" {
                break;
            }
            token = answer.get("NextContinuationToken").to_owned();
            assert!(listed.len() <= keys.len(), "pages do not end");
        }
        assert_eq!(
            listed,
            model(&keys, prefix, delimiter),
            "prefix {prefix:?} delimiter {delimiter:?} pages of {page}"
        );
    }
}
