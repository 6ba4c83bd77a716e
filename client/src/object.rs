//! Calls about objects and uploads, typed: one command or query each, sent to the partition that owns the key.

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{PartNumber, UploadId};
use holdfast_proto::meta::{
    self, AbortUpload, Bucket, Command, Committed, CompleteUpload, CreateUpload, DeleteObject, Deleted,
    GetObject, GetUpload, ListParts, ListPartsPage, MissedShard, ObjectFound, Outcome, Part, Preconditions,
    PutObject, PutPart, Query, Refusal, Upload, Version, answer, command, outcome, query,
};
use rand::RngCore;

use crate::cluster::Cluster;
use crate::error::Error;
use crate::propose::fresh;

/// Commands of one proposal at most, when a batch is deleted.
const DELETES_PER_PROPOSAL: usize = 250;

impl Cluster {
    /// Commits a version whose body is stored. Conditions are evaluated where it is applied. A repeat of the same write
    /// id is answered with the first outcome.
    ///
    /// # Errors
    /// [`Error::Refused`] with the rule that refused it; [`Error::Unavailable`], whose `unknown` says whether the
    /// version may have been committed.
    pub async fn put_object(
        &self,
        bucket: &Bucket,
        key: &[u8],
        version: Version,
        conditions: Preconditions,
        missed: Vec<MissedShard>,
    ) -> Result<Committed, Error> {
        let op = command::Op::PutObject(PutObject {
            bucket: bucket.id.clone(),
            key: Bytes::copy_from_slice(key),
            version: Some(version),
            conditions: Some(knowing(bucket, Some(conditions))),
            missed,
        });
        committed(self.commit(bucket, key, op).await?)
    }

    /// The version row, and of a multipart object the parts that the query asks for. `query.bucket` is filled here.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoSuchKey`, `NoSuchVersion` or `MethodNotAllowed` (a delete marker by its id).
    pub async fn get_object(&self, bucket: &Bucket, mut query: GetObject) -> Result<ObjectFound, Error> {
        query.bucket = bucket.id.clone();
        let key = query.key.clone();
        match self.ask(bucket, &key, query::Of::GetObject(query)).await? {
            answer::Ok::Object(found) => Ok(found),
            other => Err(unexpected_answer(&other)),
        }
    }

    /// Deletes a version, or sets a delete marker, or neither when there is nothing. `request.bucket` is filled here.
    ///
    /// # Errors
    /// [`Error::Refused`] when a condition fails; [`Error::Unavailable`].
    pub async fn delete_object(&self, bucket: &Bucket, mut request: DeleteObject) -> Result<Deleted, Error> {
        request.bucket = bucket.id.clone();
        request.conditions = Some(knowing(bucket, request.conditions));
        let key = request.key.clone();
        deleted(self.commit(bucket, &key, command::Op::DeleteObject(request)).await?)
    }

    /// Deletes many, in one proposal per partition (and per 250 keys); each has its own result, in order.
    pub async fn delete_objects(
        &self,
        bucket: &Bucket,
        requests: Vec<DeleteObject>,
    ) -> Vec<Result<Deleted, Error>> {
        let map = self.map();
        let mut groups: std::collections::BTreeMap<_, Vec<(usize, Command)>> =
            std::collections::BTreeMap::new();
        let mut results: Vec<Option<Result<Deleted, Error>>> = Vec::with_capacity(requests.len());
        for (at, mut request) in requests.into_iter().enumerate() {
            request.bucket = bucket.id.clone();
            request.conditions = Some(knowing(bucket, request.conditions));
            match map.partition_of_key(bucket, &request.key) {
                Ok(group) => {
                    let command = fresh(command::Op::DeleteObject(request));
                    groups.entry(group).or_default().push((at, command));
                    results.push(None);
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        let calls = groups.into_iter().flat_map(|(group, mut rows)| {
            let mut chunks = Vec::new();
            while !rows.is_empty() {
                let rest = rows.split_off(rows.len().min(DELETES_PER_PROPOSAL));
                chunks.push((group, std::mem::replace(&mut rows, rest)));
            }
            chunks
        });
        let calls = calls.map(|(group, rows)| async move {
            let (places, commands): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
            (places, self.propose_healing(bucket, group, commands).await)
        });
        for (places, outcome) in futures::future::join_all(calls).await {
            match outcome {
                Ok(outcomes) => {
                    for (place, outcome) in places.into_iter().zip(outcomes) {
                        results[place] = Some(accept(outcome).and_then(deleted));
                    }
                }
                Err(error) => {
                    for place in places {
                        results[place] = Some(Err(error.clone()));
                    }
                }
            }
        }
        let missing = || Err(Error::internal("fewer outcomes than commands"));
        results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }

    /// Starts a multipart upload.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unavailable`].
    pub async fn create_upload(
        &self,
        bucket: &Bucket,
        key: &[u8],
        upload: Upload,
    ) -> Result<UploadId, Error> {
        let op = command::Op::CreateUpload(CreateUpload {
            bucket: bucket.id.clone(),
            key: Bytes::copy_from_slice(key),
            random: rand::rng().next_u64(),
            upload: Some(upload),
        });
        match self.commit(bucket, key, op).await? {
            Some(outcome::Ok::Upload(id)) => {
                UploadId::from_wire(&id).map_err(|bad| Error::internal(bad.to_string()))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// An upload in progress.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoSuchUpload`.
    pub async fn get_upload(&self, bucket: &Bucket, key: &[u8], upload: UploadId) -> Result<Upload, Error> {
        let of = query::Of::GetUpload(GetUpload {
            bucket: bucket.id.clone(),
            key: Bytes::copy_from_slice(key),
            upload: upload.to_wire(),
        });
        match self.ask(bucket, key, of).await? {
            answer::Ok::Upload(upload) => Ok(upload),
            other => Err(unexpected_answer(&other)),
        }
    }

    /// Commits a part whose body is stored; an earlier part of that number is replaced.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoSuchUpload`; [`Error::Unavailable`], whose `unknown` says whether it may be there.
    #[allow(clippy::too_many_arguments)]
    pub async fn put_part(
        &self,
        bucket: &Bucket,
        key: &[u8],
        upload: UploadId,
        part: PartNumber,
        row: Part,
        begin: Hlc,
        missed: Vec<MissedShard>,
    ) -> Result<(), Error> {
        let op = command::Op::PutPart(PutPart {
            bucket: bucket.id.clone(),
            key: Bytes::copy_from_slice(key),
            upload: upload.to_wire(),
            part: u32::from(part.get()),
            row: Some(row),
            begin_hlc: begin.get(),
            missed,
        });
        self.commit(bucket, key, op).await.map(|_| ())
    }

    /// A page of an upload's parts. `request.bucket` is filled here.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoSuchUpload`.
    pub async fn list_parts(&self, bucket: &Bucket, mut request: ListParts) -> Result<ListPartsPage, Error> {
        request.bucket = bucket.id.clone();
        let key = request.key.clone();
        match self.ask(bucket, &key, query::Of::ListParts(request)).await? {
            answer::Ok::Parts(page) => Ok(page),
            other => Err(unexpected_answer(&other)),
        }
    }

    /// Makes a version of an upload's parts. `request.bucket` is filled here.
    ///
    /// # Errors
    /// [`Error::Refused`] with what is wrong with the parts; [`Error::Unavailable`].
    pub async fn complete_upload(
        &self,
        bucket: &Bucket,
        mut request: CompleteUpload,
    ) -> Result<Committed, Error> {
        request.bucket = bucket.id.clone();
        request.conditions = Some(knowing(bucket, request.conditions));
        let key = request.key.clone();
        committed(self.commit(bucket, &key, command::Op::CompleteUpload(request)).await?)
    }

    /// Ends an upload and frees its parts.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoSuchUpload`; [`Error::Unavailable`].
    pub async fn abort_upload(&self, bucket: &Bucket, key: &[u8], upload: UploadId) -> Result<(), Error> {
        let op = command::Op::AbortUpload(AbortUpload {
            bucket: bucket.id.clone(),
            key: Bytes::copy_from_slice(key),
            upload: upload.to_wire(),
            if_match_initiated_ms: None,
        });
        self.commit(bucket, key, op).await.map(|_| ())
    }

    /// Proposes one operation on a key.
    async fn commit(
        &self,
        bucket: &Bucket,
        key: &[u8],
        op: command::Op,
    ) -> Result<Option<outcome::Ok>, Error> {
        let group = self.map().partition_of_key(bucket, key)?;
        let outcomes = self.propose_healing(bucket, group, vec![fresh(op)]).await?;
        match outcomes.into_iter().next() {
            Some(outcome) => accept(outcome),
            None => Err(Error::internal("fewer outcomes than commands")),
        }
    }

    /// Asks one thing about a key.
    async fn ask(&self, bucket: &Bucket, key: &[u8], of: query::Of) -> Result<answer::Ok, Error> {
        let group = self.map().partition_of_key(bucket, key)?;
        self.query_ok(group, of).await
    }

    /// Asks one thing of a group; a refusal is an error.
    pub(crate) async fn query_ok(
        &self,
        group: holdfast_proto::id::GroupId,
        of: query::Of,
    ) -> Result<answer::Ok, Error> {
        let answer = self.query(group, Query { of: Some(of) }).await?;
        match (answer.refusal(), answer.ok) {
            (Refusal::None, Some(ok)) => Ok(ok),
            (Refusal::None, None) => Err(Error::internal("an empty answer")),
            (refusal, _) => Err(Error::refused(refusal, answer.detail)),
        }
    }
}

/// Conditions that also refuse a partition whose copy of the bucket is older than ours.
fn knowing(bucket: &Bucket, conditions: Option<Preconditions>) -> Preconditions {
    Preconditions { bucket_generation: bucket.generation, ..conditions.unwrap_or_default() }
}

/// The result of an outcome; a refusal is an error.
pub(crate) fn accept(outcome: Outcome) -> Result<Option<outcome::Ok>, Error> {
    match outcome.refusal() {
        Refusal::None => Ok(outcome.ok),
        refusal => Err(Error::refused(refusal, outcome.detail)),
    }
}

pub(crate) fn unexpected(got: &Option<outcome::Ok>) -> Error {
    Error::internal(format!("an outcome of another kind: {got:?}"))
}

pub(crate) fn unexpected_answer(got: &meta::answer::Ok) -> Error {
    let text: String = format!("{got:?}").chars().take(200).collect();
    Error::internal(format!("an answer of another kind: {text}"))
}

fn committed(ok: Option<outcome::Ok>) -> Result<Committed, Error> {
    match ok {
        Some(outcome::Ok::Committed(committed)) => Ok(committed),
        other => Err(unexpected(&other)),
    }
}

fn deleted(ok: Option<outcome::Ok>) -> Result<Deleted, Error> {
    match ok {
        Some(outcome::Ok::Deleted(deleted)) => Ok(deleted),
        None => Ok(Deleted::default()),
        other => Err(unexpected(&other)),
    }
}
