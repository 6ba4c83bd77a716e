//! Buckets: made, found, listed with their owner, and gone only when empty.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use futures::future::join_all;
use holdfast_chaos::cluster::Zone;
use holdfast_chaos::s3::S3;

fn client() -> S3 {
    Zone::shared().s3()
}

#[tokio::test]
async fn a_bucket_is_created_found_listed_and_deleted() {
    let s3 = client();
    let bucket = s3.bucket("buckets").await;
    s3.head(&bucket, "").expect(200).await;

    let listing = s3.get("", "").expect(200).await.tree();
    assert_eq!(listing.name, "ListAllMyBucketsResult");
    assert!(!listing.child("Owner").unwrap().get("ID").is_empty());
    let own = listing.child("Buckets").unwrap().all("Bucket").find(|own| own.get("Name") == bucket).unwrap();
    assert!(own.get("CreationDate").ends_with('Z'), "{own:?}");

    s3.delete(&bucket, "").expect(204).await;
    s3.head(&bucket, "").refused(404, "").await;
    s3.get(&bucket, "").refused(404, "NoSuchBucket").await;
    s3.delete(&bucket, "").refused(404, "NoSuchBucket").await;
    let listing = s3.get("", "").expect(200).await.tree();
    assert!(!listing.child("Buckets").unwrap().texts("Bucket", "Name").contains(&bucket));
}

#[tokio::test]
async fn creation_answers_with_the_location() {
    let s3 = client();
    let name = format!("buckets-{:08x}", rand::random::<u32>());
    let answer = s3.call("PUT", &name, "").expect(200).await;
    assert_eq!(answer.header("location"), format!("/{name}"));
    let location = s3.get(&name, "").query("location", "").expect(200).await.tree();
    assert_eq!(location.name, "LocationConstraint");
}

#[tokio::test]
async fn creating_ones_own_bucket_again_is_refused() {
    let s3 = client();
    let bucket = s3.bucket("buckets").await;
    s3.put(&bucket, "kept", "x").expect(200).await;
    s3.call("PUT", &bucket, "").refused(409, "BucketAlreadyOwnedByYou").await;
    s3.get(&bucket, "kept").expect(200).await;
}

/// One owner's creations at the same time cannot be told from one creation that is repeated because its answer was lost:
/// each answers that it created the bucket or that its owner has it, and there is one bucket.
#[tokio::test]
async fn creations_at_the_same_time_make_one_bucket() {
    let s3 = client();
    let name = format!("buckets-{:08x}", rand::random::<u32>());
    let answers = join_all((0..8).map(|_| {
        let call = s3.call("PUT", &name, "");
        async move { call.send().await.unwrap() }
    }))
    .await;
    assert!(answers.iter().any(|answer| answer.status == 200), "{answers:?}");
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        answer.assert_refused(409, "BucketAlreadyOwnedByYou");
    }
    s3.put(&name, "a", "x").expect(200).await;
    let listing = s3.get("", "").expect(200).await.tree();
    let names = listing.child("Buckets").unwrap().texts("Bucket", "Name");
    assert_eq!(names.iter().filter(|own| **own == name).count(), 1);
}

#[tokio::test]
async fn names_follow_the_rules() {
    let s3 = client();
    let long = "a".repeat(64);
    for name in ["ab", "Upper-case", "a..b", "-abc", "abc-", "192.168.5.4", "under_score", &long] {
        s3.call("PUT", name, "").refused(400, "InvalidBucketName").await;
    }
    let longest = format!("{:0>63}", rand::random::<u32>());
    s3.call("PUT", &longest, "").expect(200).await;
    s3.delete(&longest, "").expect(204).await;
}

#[tokio::test]
async fn a_bucket_with_objects_stays() {
    let s3 = client();
    let bucket = s3.bucket("buckets").await;
    s3.put(&bucket, "last", "x").expect(200).await;
    s3.delete(&bucket, "").refused(409, "BucketNotEmpty").await;
    // Refused deletion leaves a bucket that works.
    s3.put(&bucket, "more", "y").expect(200).await;
    s3.delete(&bucket, "last").expect(204).await;
    s3.delete(&bucket, "more").expect(204).await;
    s3.delete(&bucket, "").expect(204).await;
}

#[tokio::test]
async fn a_new_bucket_of_an_old_name_is_empty() {
    let s3 = client();
    let bucket = s3.bucket("buckets").await;
    s3.put(&bucket, "a", "x").expect(200).await;
    s3.delete(&bucket, "a").expect(204).await;
    s3.delete(&bucket, "").expect(204).await;
    s3.call("PUT", &bucket, "").expect(200).await;
    assert!(s3.keys(&bucket, 1000).await.unwrap().is_empty());
    s3.get(&bucket, "a").refused(404, "NoSuchKey").await;
    s3.put(&bucket, "a", "z").expect(200).await;
    assert_eq!(s3.get(&bucket, "a").expect(200).await.body, "z");
}

#[tokio::test]
async fn a_key_cannot_be_written_to_a_bucket_that_is_not_there() {
    let s3 = client();
    s3.put("no-such-bucket-here", "a", "x").refused(404, "NoSuchBucket").await;
    s3.get("no-such-bucket-here", "a").refused(404, "NoSuchBucket").await;
    s3.head("no-such-bucket-here", "a").refused(404, "").await;
    s3.delete("no-such-bucket-here", "a").refused(404, "NoSuchBucket").await;
}
