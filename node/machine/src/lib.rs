//! The pure metadata state machine: `apply(&mut impl Kv, Command) -> Outcome`.
//!
//! No clock, no randomness, no IO, no await: time and ids arrive in the command, so every replica computes the same.
//! `key` says where rows are, `row` what is in them, `session` what time it is; the rest is one module for each noun.
//! A handler decides first and writes then, so a refused command leaves nothing behind but its instant and its answer.
//! (Two exceptions, said where they are: the commit of a body that is refused fences its write, and DropBucketRow may
//! answer BUCKET_BUSY after some of its work.)

mod backlog;
mod bucket;
pub mod check;
mod checksum;
mod complete;
mod condition;
mod digest;
mod event;
mod key;
pub mod kv;
mod list;
mod multipart;
mod object;
mod realm;
mod recover;
mod row;
mod session;
mod version;
mod wire;
mod writes;
mod zone;

use holdfast_proto::id::{GroupId, GroupKind};
use holdfast_proto::meta::{
    Answer, Command, NodeState, Outcome, Query, Refusal, answer, command::Op, query::Of,
};

pub use recover::{
    BucketCopies, GENERATIONS_SKIPPED, NODES_SKIPPED, TARGETS_SKIPPED, bucket_copies, group_ids, next_node,
    realm_buckets,
};

use kv::{Kv, KvError, KvRead};
use row::{Step, Stop, refused_outcome};
use session::Session;

/// The newest commands this machine knows. A command of a higher level halts the group.
pub const FEATURE_LEVEL: u32 = 2;
/// What a group knows that was never told otherwise.
pub const FEATURE_LEVEL_FIRST: u32 = 1;
/// From this level on places of placement groups move, targets and nodes leave, and metadata is backed up and recovered: every
/// reader knows where else to ask, and every collector what to keep.
pub const LEVEL_MOVES: u32 = 2;

const _: () = assert!(FEATURE_LEVEL_FIRST <= LEVEL_MOVES && LEVEL_MOVES <= FEATURE_LEVEL);

/// The group cannot go on: the node stops it rather than guess.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The store below failed.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A stored row does not decode, or rows contradict each other.
    #[error("corrupt row {key}: {reason}")]
    Corrupt {
        /// The row's key, escaped.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A command of a newer feature level: skipping it would make replicas diverge.
    #[error("unknown command: {0}")]
    UnknownCommand(String),
}

/// The level of a group: what its members are known to know.
///
/// # Errors
/// [`Halt`], as for [`apply`].
pub fn feature_level(kv: &impl KvRead) -> Result<u32, Halt> {
    Ok(session::state(kv)?.feature_level.max(FEATURE_LEVEL_FIRST))
}

/// The least level at which every replica makes the same of an operation.
pub fn level_of(op: &Op) -> u32 {
    match op {
        Op::RemoveTarget(_)
        | Op::RecordEvents(_)
        | Op::BeginBackup(_)
        | Op::FinishBackup(_)
        | Op::RecoverZone(_)
        | Op::ReleaseOrphans(_) => LEVEL_MOVES,
        Op::InitZone(op) if op.first_node_number != 0 || op.first_target_number != 0 => LEVEL_MOVES,
        Op::PutPlacement(op) if op.pgs.iter().any(|pg| !pg.moving.is_empty()) => LEVEL_MOVES,
        Op::FenceWrite(op) if op.begin_hlc != 0 => LEVEL_MOVES,
        Op::SetNodeState(op) if op.state() == NodeState::NodeRemoved => LEVEL_MOVES,
        // Sent when everybody knows the level it names, and above the first level everybody knows it.
        Op::RaiseFeatureLevel(op) => op.level,
        // All others by name: whoever adds one says here from which level on.
        Op::PutBucketRow(_)
        | Op::DropBucketRow(_)
        | Op::PutObject(_)
        | Op::DeleteObject(_)
        | Op::CreateUpload(_)
        | Op::PutPart(_)
        | Op::CompleteUpload(_)
        | Op::AbortUpload(_)
        | Op::FenceWrite(_)
        | Op::RenewWrite(_)
        | Op::FreeGarbage(_)
        | Op::ClearMissed(_)
        | Op::InitRealm(_)
        | Op::CreateAccount(_)
        | Op::PutAccessKey(_)
        | Op::CreateBucket(_)
        | Op::SetBucketState(_)
        | Op::SetBucketConfig(_)
        | Op::DropBucket(_)
        | Op::InitZone(_)
        | Op::PutNode(_)
        | Op::PutTarget(_)
        | Op::SetTargetStates(_)
        | Op::PutPlacement(_)
        | Op::PutGroups(_)
        | Op::SetNodeState(_) => FEATURE_LEVEL_FIRST,
    }
}

/// Whether the leader of a group at this level may put a command into its log. What is refused here would halt replicas, or
/// make them differ. The command goes into the log with the level that is returned.
///
/// # Errors
/// In words, what is wrong with it.
pub fn admit(group: GroupId, group_level: u32, command: &Command) -> Result<u32, String> {
    let Some(op) = &command.op else { return Err("an unknown command".to_owned()) };
    let level = level_of(op).max(command.feature_level);
    if level > FEATURE_LEVEL {
        return Err(format!("feature level {level}, this is {FEATURE_LEVEL}"));
    }
    if level > group_level && !matches!(op, Op::RaiseFeatureLevel(_)) {
        return Err(format!(
            "feature level {level}, the zone is at {group_level}: some node runs an older version"
        ));
    }
    if kind_of(op).is_some_and(|kind| kind != group.kind()) {
        return Err(format!("not a command of {group}"));
    }
    Ok(level)
}

/// The kind of group that an operation is for; `None` for any.
fn kind_of(op: &Op) -> Option<GroupKind> {
    Some(match op {
        Op::RaiseFeatureLevel(_) => return None,
        Op::PutBucketRow(_)
        | Op::DropBucketRow(_)
        | Op::PutObject(_)
        | Op::DeleteObject(_)
        | Op::CreateUpload(_)
        | Op::PutPart(_)
        | Op::CompleteUpload(_)
        | Op::AbortUpload(_)
        | Op::FenceWrite(_)
        | Op::RenewWrite(_)
        | Op::FreeGarbage(_)
        | Op::ClearMissed(_) => GroupKind::Partition,
        Op::InitRealm(_)
        | Op::CreateAccount(_)
        | Op::PutAccessKey(_)
        | Op::CreateBucket(_)
        | Op::SetBucketState(_)
        | Op::SetBucketConfig(_)
        | Op::DropBucket(_) => GroupKind::Realm,
        Op::InitZone(_)
        | Op::PutNode(_)
        | Op::PutTarget(_)
        | Op::SetTargetStates(_)
        | Op::PutPlacement(_)
        | Op::PutGroups(_)
        | Op::SetNodeState(_)
        | Op::RemoveTarget(_)
        | Op::RecordEvents(_)
        | Op::BeginBackup(_)
        | Op::FinishBackup(_)
        | Op::RecoverZone(_)
        | Op::ReleaseOrphans(_) => GroupKind::Zone,
    })
}

/// Applies one committed command. A command that belongs to another kind of group is refused as malformed.
///
/// # Errors
/// [`Halt`]: nothing of the overlay may be committed and the group stops.
pub fn apply(kv: &mut impl Kv, group: GroupId, command: &Command) -> Result<Outcome, Halt> {
    let Some(op) = &command.op else {
        return Err(Halt::UnknownCommand(format!("in {group}, level {}", command.feature_level)));
    };
    if command.feature_level > FEATURE_LEVEL {
        return Err(Halt::UnknownCommand(format!("in {group}: level {}", command.feature_level)));
    }
    let mut session = Session::open(kv, group, command)?;
    let outcome = match run(&mut session, group, command, op) {
        Ok(outcome) => outcome,
        Err(Stop::Refused(refusal, detail)) => refused_outcome(refusal, detail),
        Err(Stop::Halt(halt)) => return Err(halt),
    };
    session.close()?;
    Ok(outcome)
}

fn run<K: Kv>(session: &mut Session<'_, K>, group: GroupId, command: &Command, op: &Op) -> Step<Outcome> {
    if kind_of(op).is_some_and(|kind| kind != group.kind()) {
        return row::refuse(Refusal::Malformed, format!("not a command of {group}"));
    }
    match op {
        // Remembered by their write.
        Op::PutObject(op) => session.put_object(command, op),
        Op::PutPart(op) => session.put_part(command, op),
        // Repeating these does nothing more.
        Op::PutBucketRow(op) => session.put_bucket_row(command, op),
        Op::DropBucketRow(op) => session.drop_bucket_row(op),
        Op::FenceWrite(op) => session.fence_write(op),
        Op::RenewWrite(op) => session.renew_write(op),
        Op::FreeGarbage(op) => session.free_garbage(op),
        Op::ClearMissed(op) => session.clear_missed(op),
        Op::RaiseFeatureLevel(op) => Ok(session.raise_feature_level(op)),
        Op::InitRealm(op) => session.init_realm(op),
        Op::PutAccessKey(op) => session.put_access_key(op),
        Op::InitZone(op) => session.init_zone(op),
        Op::PutTarget(op) => session.put_target(op),
        Op::RecordEvents(op) => session.record_events(op),
        Op::SetTargetStates(op) => session.set_target_states(op),
        Op::PutGroups(op) => session.put_groups(op),
        Op::SetNodeState(op) => session.set_node_state(op),
        Op::FinishBackup(op) => session.finish_backup(op),
        Op::RecoverZone(op) => session.recover_zone(op),
        Op::ReleaseOrphans(_) => session.release_orphans(),
        // Remembered by their request.
        Op::DeleteObject(op) => session.once(command, |session| session.delete_object(op)),
        Op::CreateUpload(op) => session.once(command, |session| session.create_upload(op)),
        Op::CompleteUpload(op) => session.once(command, |session| session.complete_upload(op)),
        Op::AbortUpload(op) => session.once(command, |session| session.abort_upload(op)),
        Op::CreateAccount(op) => session.once(command, |session| session.create_account(op)),
        Op::CreateBucket(op) => session.once(command, |session| session.create_bucket(op)),
        Op::SetBucketState(op) => session.once(command, |session| session.set_bucket_state(op)),
        Op::SetBucketConfig(op) => session.once(command, |session| session.set_bucket_config(op)),
        Op::DropBucket(op) => session.once(command, |session| session.drop_bucket(op)),
        Op::RemoveTarget(op) => session.once(command, |session| session.remove_target(op)),
        Op::PutNode(op) => session.once(command, |session| session.put_node(op)),
        Op::PutPlacement(op) => session.once(command, |session| session.put_placement(op)),
        Op::BeginBackup(_) => session.once(command, Session::begin_backup),
    }
}

/// Answers one query from a read view.
///
/// # Errors
/// [`Halt`], as for [`apply`].
pub fn query(kv: &impl KvRead, group: GroupId, query: &Query) -> Result<Answer, Halt> {
    let answer = match &query.of {
        None => row::answer(wire::malformed(format!("an unknown query of {group}")))?,
        Some(Of::GetObject(of)) => object::get(kv, of)?,
        Some(of) => row::answer(answer_of(kv, of))?,
    };
    Ok(Answer { hlc: session::state(kv)?.hlc, ..answer })
}

fn answer_of(kv: &impl KvRead, of: &Of) -> Step<Option<answer::Ok>> {
    use answer::Ok as Is;
    Ok(Some(match of {
        Of::GetObject(_) => return Ok(None),
        Of::ListObjects(of) => Is::Objects(list::objects(kv, of)?),
        Of::ListVersions(of) => Is::Versions(list::versions(kv, of)?),
        Of::ListUploads(of) => Is::Uploads(list::uploads(kv, of)?),
        Of::ListParts(of) => Is::Parts(multipart::list_parts(kv, of)?),
        Of::GetUpload(of) => Is::Upload(multipart::get(kv, of)?),
        Of::CountBucket(of) => Is::Counters(bucket::count(kv, wire::id(&of.bucket)?)?),
        Of::DueGarbage(of) => Is::Garbage(backlog::due_garbage(kv, of)?),
        Of::ListMissed(of) => Is::Missed(backlog::list_missed(kv, of)?),
        Of::GetBucketRow(of) => Is::Bucket(bucket::find(kv, wire::id(&of.bucket)?)?),
        Of::OwnerOfWrite(of) => Is::Owner(backlog::owner_of_write(kv, of)?),
        Of::GetBucket(of) => Is::Bucket(realm::get_bucket(kv, of)?),
        Of::ListBuckets(of) => Is::Buckets(realm::list_buckets(kv, of)?),
        Of::GetAccessKey(of) => Is::AccessKey(realm::get_access_key(kv, of)?),
        Of::ListAccessKeys(of) => Is::AccessKeys(realm::list_access_keys(kv, of)?),
        Of::GetAccount(of) => Is::Account(realm::get_account(kv, of)?),
        Of::GetMap(of) => return Ok(zone::map(kv, of.have_generation)?.map(Is::Map)),
        Of::ListEvents(of) => Is::Events(event::list(kv, of)?),
        Of::GetDigest(_) => Is::Digest(digest::digest(kv)?),
    }))
}
