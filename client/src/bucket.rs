//! Buckets and accounts: the realm's rows, and the protocol that carries a bucket into its partitions and out of them.
//!
//! Creating: the realm's row is `creating`, then every partition that owns a slot has a row, then the realm's row is
//! `active`. Deleting: the realm's row is `deleting`, every partition's row refuses writes, emptiness is checked, then the
//! rows and the realm's row are dropped, or all are set back to active. A client that dies in between leaves a bucket
//! that is `creating` or `deleting`; [`Cluster::settle_bucket`] finishes it from any state.

use std::sync::Arc;

use holdfast_proto::id::{AccountId, GroupId};
use holdfast_proto::limits::SLOTS_DEFAULT;
use holdfast_proto::meta::{
    AccessKey, Account, Bucket, BucketState, BucketsPage, Command, CountBucket, CreateBucket, DropBucket,
    DropBucketRow, GetAccessKey, GetAccount, GetBucket, ListAccessKeys, ListBuckets, Outcome, PutBucketRow,
    Refusal, SetBucketState, answer, command, outcome, query,
};

use crate::cluster::{Cluster, random_bytes};
use crate::error::Error;
use crate::object::{accept, unexpected, unexpected_answer};
use crate::propose::fresh;

/// Proposals that free the uploads of one dropped bucket.
const DROP_ROUNDS_MAX: u32 = 1000;

impl Cluster {
    /// A bucket by name: from the cache while the watch says that nothing changed, else asked for.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoSuchBucket`; [`Error::Unavailable`].
    pub async fn bucket(&self, name: &str) -> Result<Arc<Bucket>, Error> {
        let cache = &self.inner.cache.buckets;
        let now = self.inner.view.realm_applied();
        if let Some(bucket) = cache.get(name, now) {
            return Ok(bucket);
        }
        let bucket =
            Arc::new(self.fetch_bucket(GetBucket { name: name.to_owned(), ..Default::default() }).await?);
        cache.keep(name, now, &bucket);
        Ok(bucket)
    }

    /// How many slots the bucket of this id has; `None` when there is no such bucket.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn bucket_slots(&self, id: bytes::Bytes) -> Result<Option<u16>, Error> {
        match self.fetch_bucket(GetBucket { id, ..Default::default() }).await {
            Ok(bucket) => Ok(u16::try_from(bucket.slots).ok().filter(|slots| *slots > 0)),
            Err(Error::Refused { refusal: Refusal::NoSuchBucket, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bucket of this id.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoSuchBucket`; [`Error::Unavailable`].
    pub async fn bucket_of_id(&self, id: bytes::Bytes) -> Result<Bucket, Error> {
        self.fetch_bucket(GetBucket { id, ..Default::default() }).await
    }

    /// The account that the realm began with.
    ///
    /// # Errors
    /// [`Error::Internal`] when it has no key; [`Error::Unavailable`].
    pub async fn root_account(&self) -> Result<AccountId, Error> {
        let list = query::Of::ListAccessKeys(ListAccessKeys::default());
        let keys = match self.query_ok(GroupId::REALM, list).await? {
            answer::Ok::AccessKeys(keys) => keys.keys,
            other => return Err(unexpected_answer(&other)),
        };
        let mut ids: Vec<_> = keys.into_iter().map(|key| key.account).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let id = AccountId::from_wire(&id).map_err(|bad| Error::internal(bad.to_string()))?;
            if self.account(id).await?.root {
                return Ok(id);
            }
        }
        Err(Error::internal("the root account has no key"))
    }

    /// The name of the bucket of this id.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoSuchBucket`; [`Error::Unavailable`].
    pub async fn bucket_name(&self, id: bytes::Bytes) -> Result<String, Error> {
        Ok(self.fetch_bucket(GetBucket { id, ..Default::default() }).await?.name)
    }

    async fn fetch_bucket(&self, get: GetBucket) -> Result<Bucket, Error> {
        match self.query_ok(GroupId::REALM, query::Of::GetBucket(get)).await? {
            answer::Ok::Bucket(bucket) => Ok(bucket),
            other => Err(unexpected_answer(&other)),
        }
    }

    /// Creates a bucket and returns it active. `location` is the LocationConstraint as given.
    ///
    /// # Errors
    /// [`Error::Refused`] with `BucketExists`, `BucketExistsOwned` or `BucketBusy`; [`Error::Unavailable`]: it may exist
    /// or come to exist.
    pub async fn create_bucket(&self, name: &str, owner: AccountId, location: &str) -> Result<Bucket, Error> {
        let bucket = Bucket {
            id: bytes::Bytes::copy_from_slice(&random_bytes()),
            name: name.to_owned(),
            owner: owner.to_wire(),
            state: BucketState::BucketCreating.into(),
            generation: 1,
            slots: u32::from(SLOTS_DEFAULT),
            created_ms: self.now().ms(),
            location: location.to_owned(),
            ..Default::default()
        };
        self.create_bucket_as(bucket).await
    }

    /// The same of a bucket whose id is known: rows that were lost are made again.
    ///
    /// # Errors
    /// As [`Self::create_bucket`].
    pub async fn create_bucket_as(&self, bucket: Bucket) -> Result<Bucket, Error> {
        let name = bucket.name.clone();
        let op = command::Op::CreateBucket(CreateBucket { bucket: Some(bucket.clone()) });
        let created = self.realm_bucket(op).await?.unwrap_or(bucket);
        let active = self.activate(&created).await?;
        self.inner.cache.buckets.forget(&name);
        Ok(active)
    }

    /// Deletes a bucket that holds no version and no marker; uploads in progress go with it.
    ///
    /// # Errors
    /// [`Error::Refused`] with `BucketNotEmpty`: it is as it was; [`Error::Unavailable`]: it may be gone, or refuse
    /// writes until a repeat or a worker has settled it.
    pub async fn delete_bucket(&self, bucket: &Bucket) -> Result<(), Error> {
        let deleting = match bucket.state() {
            BucketState::BucketDeleting => bucket.clone(),
            _ => self.set_state(bucket, BucketState::BucketActive, BucketState::BucketDeleting).await?,
        };
        self.inner.cache.buckets.forget(&bucket.name);
        let result = self.finish_deleting(&deleting).await;
        self.inner.cache.buckets.forget(&bucket.name);
        result
    }

    /// Brings a bucket that is `creating` or `deleting` to an end, and pushes an active one's rows to its partitions
    /// again. Idempotent; for whoever finds a bucket whose client died.
    ///
    /// # Errors
    /// As [`Self::create_bucket`] and [`Self::delete_bucket`].
    pub async fn settle_bucket(&self, bucket: &Bucket) -> Result<(), Error> {
        match bucket.state() {
            BucketState::BucketCreating => self.activate(bucket).await.map(|_| ()),
            BucketState::BucketDeleting => match self.delete_bucket(bucket).await {
                Err(Error::Refused { refusal: Refusal::BucketNotEmpty, .. }) => Ok(()),
                result => result,
            },
            BucketState::BucketActive | BucketState::Unspecified => self.push_rows(bucket).await,
        }
    }

    async fn activate(&self, created: &Bucket) -> Result<Bucket, Error> {
        let mut row = created.clone();
        row.set_state(BucketState::BucketActive);
        self.push_rows(&row).await?;
        let active = self.set_state(created, BucketState::BucketCreating, BucketState::BucketActive).await?;
        // The change of state may have a generation of its own.
        if active.generation != row.generation {
            self.push_rows(&active).await?;
        }
        Ok(active)
    }

    async fn finish_deleting(&self, deleting: &Bucket) -> Result<(), Error> {
        self.push_rows(deleting).await?;
        if !self.is_empty(deleting).await? {
            return self.restore(deleting).await;
        }
        let drop_row = DropBucketRow { bucket: deleting.id.clone(), generation: deleting.generation };
        for round in 1.. {
            match self.in_every_partition(deleting, command::Op::DropBucketRow(drop_row.clone()), &[]).await {
                Ok(()) => break,
                // Each round frees many uploads and their parts.
                Err(Error::Refused { refusal: Refusal::BucketBusy, .. }) if round < DROP_ROUNDS_MAX => {}
                Err(Error::Refused { refusal: Refusal::BucketNotEmpty, .. }) => {
                    return self.restore(deleting).await;
                }
                Err(error) => return Err(error),
            }
        }
        let drop = DropBucket { bucket: deleting.id.clone(), generation: deleting.generation };
        match self.realm_bucket(command::Op::DropBucket(drop)).await {
            // Somebody else settled it.
            Ok(_) | Err(Error::Refused { refusal: Refusal::NoSuchBucket, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn restore(&self, deleting: &Bucket) -> Result<(), Error> {
        let active = self.set_state(deleting, BucketState::BucketDeleting, BucketState::BucketActive).await?;
        self.push_rows(&active).await?;
        Err(Error::refused(Refusal::BucketNotEmpty, "the bucket holds versions or markers"))
    }

    /// Whether no partition holds a version or a marker.
    async fn is_empty(&self, bucket: &Bucket) -> Result<bool, Error> {
        let counts = self.map().partitions_of_bucket(bucket)?.into_iter().map(|(group, _)| async move {
            match self
                .query_ok(group, query::Of::CountBucket(CountBucket { bucket: bucket.id.clone() }))
                .await?
            {
                answer::Ok::Counters(count) => Ok(count.versions + count.markers + count.objects),
                other => Err(unexpected_answer(&other)),
            }
        });
        Ok(futures::future::try_join_all(counts).await?.into_iter().all(|count| count == 0))
    }

    async fn set_state(&self, bucket: &Bucket, from: BucketState, to: BucketState) -> Result<Bucket, Error> {
        let change = SetBucketState { bucket: bucket.id.clone(), from: from.into(), to: to.into() };
        let changed = self.realm_bucket(command::Op::SetBucketState(change)).await?;
        Ok(changed.unwrap_or_else(|| {
            let mut bucket = bucket.clone();
            bucket.set_state(to);
            bucket
        }))
    }

    /// Proposes to the realm; the bucket as it is now, where the outcome has one.
    async fn realm_bucket(&self, op: command::Op) -> Result<Option<Bucket>, Error> {
        let outcomes = self.propose(GroupId::REALM, vec![fresh(op)]).await?;
        let outcome = outcomes.into_iter().next().ok_or_else(|| Error::internal("no outcome"))?;
        match accept(outcome)? {
            Some(outcome::Ok::Bucket(bucket)) => Ok(Some(bucket)),
            None | Some(outcome::Ok::Generation(_)) => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes the bucket's row to every partition that owns a slot of it. A partition that has a newer
    /// one, or has dropped the bucket, keeps to that.
    pub(crate) async fn push_rows(&self, bucket: &Bucket) -> Result<(), Error> {
        let put = PutBucketRow { bucket: Some(bucket.clone()) };
        let kept = [Refusal::StaleBucket, Refusal::NoSuchBucket];
        self.in_every_partition(bucket, command::Op::PutBucketRow(put), &kept).await
    }

    /// Proposes to every partition that owns a slot; refusals in `fine` are.
    async fn in_every_partition(
        &self,
        bucket: &Bucket,
        op: command::Op,
        fine: &[Refusal],
    ) -> Result<(), Error> {
        let partitions = self.map().partitions_of_bucket(bucket)?;
        let calls = partitions.into_iter().map(|(group, _)| {
            let command = fresh(op.clone());
            async move {
                let outcomes = self.propose(group, vec![command]).await?;
                match outcomes.into_iter().next().map(accept) {
                    Some(Ok(_)) => Ok(()),
                    Some(Err(error)) if error.refusal().is_some_and(|refusal| fine.contains(&refusal)) => {
                        Ok(())
                    }
                    Some(Err(error)) => Err(error),
                    None => Err(Error::internal("no outcome")),
                }
            }
        });
        // All are waited for: one that refuses does not leave another half asked.
        futures::future::join_all(calls).await.into_iter().collect()
    }

    /// Proposes to a partition; when its copy of the bucket is older than the realm's (whoever pushed it died), pushes
    /// it and tries once more. An error after that refusal is always uncertain: see [`uncertain`].
    pub(crate) async fn propose_healing(
        &self,
        bucket: &Bucket,
        group: GroupId,
        mut commands: Vec<Command>,
    ) -> Result<Vec<Outcome>, Error> {
        let mut repeated = false;
        let mut outcomes = self.propose_more(group, &mut commands, &mut repeated).await?;
        let stale =
            |outcome: &Outcome| matches!(outcome.refusal(), Refusal::StaleBucket | Refusal::NoSuchBucket);
        let places: Vec<usize> = (0..outcomes.len()).filter(|at| stale(&outcomes[*at])).collect();
        if places.is_empty() {
            return Ok(outcomes);
        }
        let get = GetBucket { id: bucket.id.clone(), ..Default::default() };
        let newest = self.fetch_bucket(get).await.map_err(uncertain)?;
        self.inner.cache.buckets.forget(&bucket.name);
        if newest.state() != BucketState::BucketActive {
            return Ok(outcomes);
        }
        self.push_rows(&newest).await.map_err(uncertain)?;
        // The same requests: a late copy of one, which the refusal did not fence, must be known for a repeat.
        let mut again: Vec<Command> = places.iter().map(|at| commands[*at].clone()).collect();
        let healed = self.propose_more(group, &mut again, &mut repeated).await.map_err(uncertain)?;
        for (place, outcome) in places.into_iter().zip(healed) {
            outcomes[place] = outcome;
        }
        Ok(outcomes)
    }

    /// A page of buckets in name order: those of `owner`, or all.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_buckets(
        &self,
        owner: Option<AccountId>,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<BucketsPage, Error> {
        let of = query::Of::ListBuckets(ListBuckets {
            owner: owner.map(AccountId::to_wire).unwrap_or_default(),
            prefix: prefix.to_owned(),
            after: after.to_owned(),
            limit,
            ..Default::default()
        });
        match self.query_ok(GroupId::REALM, of).await? {
            answer::Ok::Buckets(page) => Ok(page),
            other => Err(unexpected_answer(&other)),
        }
    }

    /// An access key, cached like buckets; `None` when there is none of that id.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn access_key(&self, id: &str) -> Result<Option<Arc<AccessKey>>, Error> {
        let cache = &self.inner.cache.keys;
        let now = self.inner.view.realm_applied();
        if let Some(key) = cache.get(id, now) {
            return Ok(Some(key));
        }
        let of = query::Of::GetAccessKey(GetAccessKey { id: id.to_owned() });
        match self.query_ok(GroupId::REALM, of).await {
            Ok(answer::Ok::AccessKey(key)) => {
                let key = Arc::new(key);
                cache.keep(id, now, &key);
                Ok(Some(key))
            }
            Ok(other) => Err(unexpected_answer(&other)),
            Err(Error::Refused { refusal: Refusal::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An account.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NotFound`; [`Error::Unavailable`].
    pub async fn account(&self, id: AccountId) -> Result<Account, Error> {
        match self.query_ok(GroupId::REALM, query::Of::GetAccount(GetAccount { id: id.to_wire() })).await? {
            answer::Ok::Account(account) => Ok(account),
            other => Err(unexpected_answer(&other)),
        }
    }
}

/// What an error says of a command that was refused for an older copy of its bucket: that refusal does not fence a write, so
/// a late copy of the command may still be applied once the newer copy is there.
fn uncertain(error: Error) -> Error {
    match error {
        // As uncertain as the refusal that came first.
        Error::Refused { refusal: Refusal::NoSuchBucket | Refusal::StaleBucket, .. } => error,
        Error::Refused { refusal, detail } => {
            let detail = format!("the bucket's row was refused: {refusal:?} {detail}");
            Error::unavailable(detail).uncertain()
        }
        other => other.uncertain(),
    }
}
