//! The realm: accounts, access keys and buckets by name.
//!
//! A bucket's row is the truth about it; partitions hold copies. Its generation rises with everything that its copies must
//! learn: configuration, and the start and the withdrawal of a deletion. Turning active does not raise it: copies are
//! usable from the moment they are written.

use holdfast_proto::id::{AccountId, BucketId, RealmId};
use holdfast_proto::limits::{BUCKET_NAME_BYTES, BUCKETS_PER_ACCOUNT_MAX, LIST_PAGE_MAX};
use holdfast_proto::meta::{
    AccessKey, AccessKeys, Account, Bucket, BucketName, BucketState, BucketsPage, CreateAccount,
    CreateBucket, DropBucket, GetAccessKey, GetAccount, GetBucket, InitRealm, ListAccessKeys, ListBuckets,
    Outcome, PutAccessKey, Realm, Refusal, SetBucketConfig, SetBucketState, Versioning, outcome,
};

use crate::bucket::generation;
use crate::key;
use crate::kv::{Kv, KvRead};
use crate::row::{self, Step, Stop, refuse};
use crate::session::Session;
use crate::wire;

/// Access keys of one account that a listing shows, at most.
const KEYS_MAX: usize = 1000;

fn named(bucket: Bucket) -> Outcome {
    Outcome { ok: Some(outcome::Ok::Bucket(bucket)), ..Outcome::default() }
}

fn by_id(kv: &impl KvRead, id: BucketId) -> Step<Bucket> {
    let key = key::of_id(key::BKI, id.as_bytes());
    let Some(name) = row::read::<BucketName>(kv, &key)? else {
        return refuse(Refusal::NoSuchBucket, format!("no bucket {id}"));
    };
    Ok(row::read_sure(kv, &key::of_text(key::BKN, &name.name), "its id names it")?)
}

impl<K: Kv> Session<'_, K> {
    pub(crate) fn init_realm(&mut self, op: &InitRealm) -> Step<Outcome> {
        let id: RealmId = wire::id(&op.realm)?;
        let (Some(root), Some(root_key)) = (&op.root, &op.root_key) else {
            return wire::malformed("a realm starts with a root account and its key");
        };
        let account: AccountId = wire::id(&root.id)?;
        if let Some(realm) = row::read::<Realm>(self.kv, key::RLM)? {
            if realm.id == op.realm {
                return Ok(Outcome::default());
            }
            return refuse(Refusal::AlreadyExists, format!("this is another realm than {id}"));
        }
        let created_ms = self.hlc.ms();
        row::write(self.kv, key::RLM.to_vec(), &Realm { id: op.realm.clone(), created_ms });
        let root = Account { created_ms, root: true, ..root.clone() };
        row::write(self.kv, key::of_id(key::ACC, account.as_bytes()), &root);
        let root_key = AccessKey { account: root.id, created_ms, ..root_key.clone() };
        row::write(self.kv, key::of_text(key::KEY, &root_key.id), &root_key);
        Ok(Outcome::default())
    }

    pub(crate) fn create_account(&mut self, op: &CreateAccount) -> Step<Outcome> {
        let Some(account) = &op.account else { return wire::malformed("no account") };
        let id: AccountId = wire::id(&account.id)?;
        let key = key::of_id(key::ACC, id.as_bytes());
        if self.kv.get(&key)?.is_some() {
            return refuse(Refusal::AlreadyExists, format!("account {id}"));
        }
        row::write(self.kv, key, &Account { created_ms: self.hlc.ms(), ..account.clone() });
        Ok(Outcome::default())
    }

    pub(crate) fn put_access_key(&mut self, op: &PutAccessKey) -> Step<Outcome> {
        let Some(given) = &op.key else { return wire::malformed("no access key") };
        let account: AccountId = wire::id(&given.account)?;
        if given.id.is_empty() {
            return wire::malformed("an access key has an id");
        }
        if self.kv.get(&key::of_id(key::ACC, account.as_bytes()))?.is_none() {
            return refuse(Refusal::NotFound, format!("no account {account}"));
        }
        let key = key::of_text(key::KEY, &given.id);
        let known = row::read::<AccessKey>(self.kv, &key)?;
        if known.as_ref().is_some_and(|known| known.account != given.account) {
            return refuse(Refusal::AlreadyExists, "the access key is another account's");
        }
        let created_ms = known.map_or(self.hlc.ms(), |known| known.created_ms);
        row::write(self.kv, key, &AccessKey { created_ms, ..given.clone() });
        Ok(Outcome::default())
    }

    pub(crate) fn create_bucket(&mut self, op: &CreateBucket) -> Step<Outcome> {
        let Some(given) = &op.bucket else { return wire::malformed("no bucket") };
        let id: BucketId = wire::id(&given.id)?;
        let owner: AccountId = wire::id(&given.owner)?;
        wire::slots(given)?;
        if !BUCKET_NAME_BYTES.contains(&given.name.len()) {
            return wire::malformed(format!("a bucket name of {} bytes", given.name.len()));
        }
        let key = key::of_text(key::BKN, &given.name);
        if let Some(known) = row::read::<Bucket>(self.kv, &key)? {
            if known.owner != given.owner {
                return refuse(Refusal::BucketExists, given.name.as_str());
            }
            return match known.state() {
                // Whoever began it may have died: this caller goes on with the same bucket.
                BucketState::BucketCreating => Ok(named(known)),
                BucketState::BucketDeleting => refuse(Refusal::BucketBusy, "the bucket is being deleted"),
                BucketState::BucketActive | BucketState::Unspecified => {
                    refuse(Refusal::BucketExistsOwned, given.name.as_str())
                }
            };
        }
        let id_key = key::of_id(key::BKI, id.as_bytes());
        if self.kv.get(&id_key)?.is_some() {
            return refuse(Refusal::AlreadyExists, format!("bucket id {id}"));
        }
        let prefix = key::of_id(key::BKO, owner.as_bytes());
        if self.kv.scan(&prefix, &key::prefix_end(&prefix)).take(BUCKETS_PER_ACCOUNT_MAX).count()
            == BUCKETS_PER_ACCOUNT_MAX
        {
            return refuse(Refusal::TooMany, format!("{BUCKETS_PER_ACCOUNT_MAX} buckets"));
        }
        let bucket = Bucket {
            state: BucketState::BucketCreating.into(),
            generation: 1,
            created_ms: self.hlc.ms(),
            ..given.clone()
        };
        row::write(self.kv, key, &bucket);
        row::write(self.kv, id_key, &BucketName { name: bucket.name.clone() });
        row::write(self.kv, key::bucket_of_owner(owner, &bucket.name), &());
        Ok(named(bucket))
    }

    pub(crate) fn set_bucket_state(&mut self, op: &SetBucketState) -> Step<Outcome> {
        let bucket = by_id(self.kv, wire::id(&op.bucket)?)?;
        let allowed = matches!(
            (op.from(), op.to()),
            (BucketState::BucketCreating, BucketState::BucketActive | BucketState::BucketDeleting)
                | (BucketState::BucketActive, BucketState::BucketDeleting)
                | (BucketState::BucketDeleting, BucketState::BucketActive)
        );
        if !allowed {
            return wire::malformed("a bucket is created, active, deleting, and active again");
        }
        if bucket.state() == op.to() {
            return Ok(named(bucket));
        }
        if bucket.state() != op.from() {
            return refuse(Refusal::BucketBusy, format!("the bucket is {}", bucket.state().as_str_name()));
        }
        let raised =
            u64::from(op.from() != BucketState::BucketCreating || op.to() != BucketState::BucketActive);
        let bucket = Bucket { state: op.to, generation: bucket.generation + raised, ..bucket };
        row::write(self.kv, key::of_text(key::BKN, &bucket.name), &bucket);
        Ok(named(bucket))
    }

    pub(crate) fn set_bucket_config(&mut self, op: &SetBucketConfig) -> Step<Outcome> {
        let Some(given) = &op.bucket else { return wire::malformed("no bucket") };
        let bucket = by_id(self.kv, wire::id(&given.id)?)?;
        if bucket.state() != BucketState::BucketActive {
            return refuse(Refusal::BucketBusy, format!("the bucket is {}", bucket.state().as_str_name()));
        }
        if bucket.generation != op.expected_generation {
            return refuse(Refusal::StaleGeneration, format!("generation {}", bucket.generation));
        }
        if given.versioning() == Versioning::Off && bucket.versioning() != Versioning::Off {
            return wire::malformed("versioning can be suspended, not undone");
        }
        // Identity, owner, slots and state are not configuration.
        let bucket = Bucket {
            generation: bucket.generation + 1,
            versioning: given.versioning,
            tags: given.tags.clone(),
            ..bucket
        };
        row::write(self.kv, key::of_text(key::BKN, &bucket.name), &bucket);
        Ok(named(bucket))
    }

    pub(crate) fn drop_bucket(&mut self, op: &DropBucket) -> Step<Outcome> {
        let id: BucketId = wire::id(&op.bucket)?;
        let bucket = by_id(self.kv, id)?;
        if bucket.state() != BucketState::BucketDeleting {
            return refuse(Refusal::BucketBusy, format!("the bucket is {}", bucket.state().as_str_name()));
        }
        if bucket.generation != op.generation {
            return refuse(Refusal::StaleGeneration, format!("generation {}", bucket.generation));
        }
        self.kv.delete(&key::of_text(key::BKN, &bucket.name));
        self.kv.delete(&key::of_id(key::BKI, id.as_bytes()));
        self.kv.delete(&key::bucket_of_owner(wire::id(&bucket.owner)?, &bucket.name));
        Ok(generation(op.generation))
    }
}

pub(crate) fn get_bucket(kv: &impl KvRead, query: &GetBucket) -> Step<Bucket> {
    if query.name.is_empty() {
        return by_id(kv, wire::id(&query.id)?);
    }
    match row::read(kv, &key::of_text(key::BKN, &query.name))? {
        Some(bucket) => Ok(bucket),
        None => refuse(Refusal::NoSuchBucket, query.name.as_str()),
    }
}

/// Buckets in the order of their names, of one owner or of all.
pub(crate) fn list_buckets(kv: &impl KvRead, query: &ListBuckets) -> Step<BucketsPage> {
    let limit = (query.limit as usize).min(LIST_PAGE_MAX);
    let mut page = BucketsPage::default();
    if limit == 0 {
        return Ok(page);
    }
    let (family, head) = if query.owner.is_empty() {
        (key::BKN, key::BKN.to_vec())
    } else {
        (key::BKO, key::of_id(key::BKO, wire::id::<AccountId>(&query.owner)?.as_bytes()))
    };
    let mut prefix = head.clone();
    key::escape(&mut prefix, query.prefix.as_bytes());
    let mut start = prefix.clone();
    if !query.after.is_empty() {
        let mut after = head.clone();
        key::escape_key(&mut after, query.after.as_bytes());
        after.push(0);
        start = start.max(after);
    }
    for row in kv.scan(&start, &key::prefix_end(&prefix)) {
        let (key, value) = row.map_err(Stop::from)?;
        let bucket: Bucket = if family == key::BKN {
            row::decode(&key, value)?
        } else {
            let mut by_name = key::BKN.to_vec();
            by_name.extend_from_slice(&key[head.len()..]);
            row::read_sure(kv, &by_name, "its owner's index has it")?
        };
        if query.state() != BucketState::Unspecified && bucket.state() != query.state() {
            continue;
        }
        if page.buckets.len() == limit {
            page.more = true;
            break;
        }
        page.buckets.push(bucket);
    }
    Ok(page)
}

pub(crate) fn get_access_key(kv: &impl KvRead, query: &GetAccessKey) -> Step<AccessKey> {
    match row::read(kv, &key::of_text(key::KEY, &query.id))? {
        Some(key) => Ok(key),
        None => refuse(Refusal::NotFound, "no such access key"),
    }
}

pub(crate) fn list_access_keys(kv: &impl KvRead, query: &ListAccessKeys) -> Step<AccessKeys> {
    let mut keys = Vec::new();
    for row in kv.scan(key::KEY, &key::prefix_end(key::KEY)) {
        let (key, value) = row.map_err(Stop::from)?;
        let access_key: AccessKey = row::decode(&key, value)?;
        if query.account.is_empty() || access_key.account == query.account {
            keys.push(access_key);
        }
        if keys.len() == KEYS_MAX {
            break;
        }
    }
    Ok(AccessKeys { keys })
}

pub(crate) fn get_account(kv: &impl KvRead, query: &GetAccount) -> Step<Account> {
    let id: AccountId = wire::id(&query.id)?;
    match row::read(kv, &key::of_id(key::ACC, id.as_bytes()))? {
        Some(account) => Ok(account),
        None => refuse(Refusal::NotFound, format!("no account {id}")),
    }
}
