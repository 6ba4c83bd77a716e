//! Mutations: what identifies a request to its group, and when it was first attempted.
//!
//! A group remembers a request by its id and the HLC of its first attempt. It refuses a first attempt from long ago, which it
//! may have forgotten, and one from ahead of itself. So that HLC is the group's own, read from its applied state: not this
//! machine's clock, nor the time that a watched node or another group tells, which one bad clock would spoil for all.
//!
//! Where nothing has happened for long, the HLC that is read is old and the command is refused as such. That refusal moved
//! the group's clock on: it is read again and the command goes again under the same request id. The first attempt is
//! moved only when no attempt before the refusal may have been done: else the group would not know the repeat for one.

use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::GroupId;
use holdfast_proto::limits::REQUEST_AGE_MS_MAX;
use holdfast_proto::meta::{Command, GetBucketRow, Outcome, Query, Refusal, command, query};
use tokio::time::Instant;

use crate::cluster::{Cluster, random_bytes};
use crate::error::Error;
use crate::route::Replied;

/// A group's HLC that was read longer ago is read again: long before the group finds it too old.
pub(crate) const GROUP_HLC_AGE_MAX: Duration = Duration::from_secs(60);
/// How often a command goes again because its first attempt was too long ago. Once is enough for a sane clock.
const MOVES_MAX: u32 = 3;

const _: () = assert!(
    GROUP_HLC_AGE_MAX.as_millis() * 4 < REQUEST_AGE_MS_MAX as u128,
    "what is known of a busy group is never too old for it"
);

/// A command that was never sent: its identity is filled in when it is.
pub(crate) fn fresh(op: command::Op) -> Command {
    Command { op: Some(op), ..Default::default() }
}

impl Cluster {
    /// Commits commands through a group: routed to its leader and repeated with the same request ids until the deadline.
    /// Request ids and first-attempt times that are missing are filled in; those that are given are kept. All commands
    /// of one call are in one log entry; refusals are in the outcomes. Not cancel-safe: a dropped call may still be done.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with `unknown` when they may have been done; [`Error::Internal`].
    pub async fn propose(&self, group: GroupId, mut commands: Vec<Command>) -> Result<Vec<Outcome>, Error> {
        // Who says when it attempted first has attempted before.
        let mut repeated = commands.iter().any(|command| command.first_attempt_hlc != 0);
        self.propose_more(group, &mut commands, &mut repeated).await
    }

    /// As [`Self::propose`], for a caller that proposes the same commands again: their identity is written back to them.
    /// `repeated`: an attempt may have been done without an answer, before this call or in it.
    pub(crate) async fn propose_more(
        &self,
        group: GroupId,
        commands: &mut [Command],
        repeated: &mut bool,
    ) -> Result<Vec<Outcome>, Error> {
        let deadline = Instant::now() + self.inner.config.call_deadline;
        self.identify(group, commands, deadline).await?;
        let mut outcomes = self.send(group, commands.to_vec(), deadline, repeated).await?;
        for _ in 0..MOVES_MAX {
            let is_late = |outcome: &Outcome| outcome.refusal() == Refusal::RequestTooOld;
            let late: Vec<usize> = (0..outcomes.len()).filter(|at| is_late(&outcomes[*at])).collect();
            if late.is_empty() || *repeated {
                break;
            }
            // Without the time the refusals stand: nothing was done.
            let Ok(now) = self.read_group_hlc(group, deadline).await else { break };
            if late.iter().any(|at| commands[*at].first_attempt_hlc >= now.get()) {
                break;
            }
            late.iter().for_each(|at| commands[*at].first_attempt_hlc = now.get());
            metrics::counter!("holdfast_client_first_attempts_moved_total").increment(late.len() as u64);
            let again = late.iter().map(|at| commands[*at].clone()).collect();
            let answered = match self.send(group, again, deadline, repeated).await {
                Ok(answered) => answered,
                // The others were done.
                Err(error) if late.len() < outcomes.len() => return Err(error.uncertain()),
                Err(error) => return Err(error),
            };
            for (at, outcome) in late.into_iter().zip(answered) {
                outcomes[at] = outcome;
            }
        }
        Ok(outcomes)
    }

    /// Gives commands that have none a request id and a first attempt.
    async fn identify(
        &self,
        group: GroupId,
        commands: &mut [Command],
        deadline: Instant,
    ) -> Result<(), Error> {
        for command in commands.iter_mut().filter(|command| command.request.is_empty()) {
            command.request = Bytes::copy_from_slice(&random_bytes());
        }
        if commands.iter().all(|command| command.first_attempt_hlc != 0) {
            return Ok(());
        }
        let now = match self.inner.view.group_hlc(group, Instant::now()) {
            Some(hlc) => hlc,
            None => self.read_group_hlc(group, deadline).await?,
        };
        for command in commands.iter_mut().filter(|command| command.first_attempt_hlc == 0) {
            command.first_attempt_hlc = now.get();
        }
        Ok(())
    }

    async fn send(
        &self,
        group: GroupId,
        commands: Vec<Command>,
        deadline: Instant,
        repeated: &mut bool,
    ) -> Result<Vec<Outcome>, Error> {
        let sent = self.inner.proposals.call(&self.inner, group, commands, deadline).await?;
        let Replied { replies, unknown } = sent;
        *repeated |= unknown;
        Ok(replies)
    }

    /// The HLC that a group has applied, asked of its leader.
    async fn read_group_hlc(&self, group: GroupId, deadline: Instant) -> Result<Hlc, Error> {
        // Every answer of a group has its time. This is the least that can be asked of any: one row, which is nowhere.
        let nothing = GetBucketRow { bucket: Bytes::from_static(&[0; 16]) };
        let query = Query { of: Some(query::Of::GetBucketRow(nothing)) };
        let Replied { replies, .. } =
            self.inner.reads.call(&self.inner, group, vec![query], deadline).await?;
        let answer = replies.first().ok_or_else(|| Error::internal("no answer to a query"))?;
        Ok(Hlc::from_u64(answer.hlc))
    }
}
