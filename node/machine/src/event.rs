//! The zone's event log: what happened, which decision was taken, and why.
//!
//! What a command changes is told by the same apply, so no change goes untold and none is told twice. What is not a change of
//! rows (repair, losses, who leads) comes by `RecordEvents`. The newest [`EVENTS_MAX`] stay. Only from [`LEVEL_MOVES`] on: an
//! older replica would not write the rows.

use holdfast_proto::limits::EVENTS_MAX;
use holdfast_proto::meta::{Event, EventPage, EventSeverity, ListEvents, Outcome, RecordEvents};

use crate::key;
use crate::kv::{Kv, KvRead};
use crate::row::{self, Step};
use crate::session::Session;
use crate::{LEVEL_MOVES, wire};

/// Newest events among which the same thing is not told again.
const RECENT: u64 = 64;
/// Events of one command, and bytes of their text.
const EVENTS_PER_COMMAND_MAX: usize = 100;
const TEXT_MAX: usize = 1024;
/// Answered at once, at most.
const PAGE_MAX: u64 = 1000;

fn event_key(seq: u64) -> Vec<u8> {
    key::of_id(key::EVT, &seq.to_be_bytes())
}

impl<K: Kv> Session<'_, K> {
    /// Tells of something that this command did.
    pub(crate) fn tell(
        &mut self,
        severity: EventSeverity,
        code: &str,
        subject: String,
        text: String,
        why: &str,
    ) {
        if self.state.feature_level < LEVEL_MOVES {
            return;
        }
        let event = Event {
            hlc: self.hlc.get(),
            severity: severity.into(),
            code: code.to_owned(),
            subject,
            text,
            why: why.to_owned(),
            ..Event::default()
        };
        let seq = self.state.next_event;
        self.state.next_event += 1;
        row::write(self.kv, event_key(seq), &event);
        if let Some(oldest) = seq.checked_sub(EVENTS_MAX) {
            self.kv.delete(&event_key(oldest));
        }
    }

    /// Tells of what happened elsewhere, unless the newest events say the same already: of one subject and code the newest
    /// counts, so a condition that comes back after another was told of is told again.
    pub(crate) fn record_events(&mut self, op: &RecordEvents) -> Step<Outcome> {
        if op.events.len() > EVENTS_PER_COMMAND_MAX {
            return wire::malformed(format!("{} events in one command", op.events.len()));
        }
        for event in &op.events {
            if event.code.is_empty() || event.text.len() > TEXT_MAX || event.why.len() > TEXT_MAX {
                return wire::malformed("an event without a code, or a long one");
            }
        }
        for event in &op.events {
            if !self.is_told(event)? {
                let (code, subject, text) = (&event.code, event.subject.clone(), event.text.clone());
                self.tell(event.severity(), code, subject, text, &event.why);
            }
        }
        Ok(Outcome::default())
    }

    fn is_told(&self, event: &Event) -> Step<bool> {
        let next = self.state.next_event;
        for seq in (next.saturating_sub(RECENT)..next).rev() {
            let Some(known) = row::read::<Event>(self.kv, &event_key(seq))? else { continue };
            if known.code == event.code && known.subject == event.subject {
                return Ok(known.text == event.text);
            }
        }
        Ok(false)
    }
}

/// Events from a number on, oldest first; with `newest`, so many of the newest.
pub(crate) fn list(kv: &impl KvRead, of: &ListEvents) -> Step<EventPage> {
    let next = crate::session::state(kv)?.next_event;
    let limit = u64::from(of.limit).clamp(1, PAGE_MAX);
    let from = if of.newest { next.saturating_sub(limit).max(of.from) } else { of.from };
    let mut page = EventPage { next: from.max(next.saturating_sub(EVENTS_MAX)), ..EventPage::default() };
    while page.next < next && (page.events.len() as u64) < limit {
        if let Some(event) = row::read::<Event>(kv, &event_key(page.next))? {
            page.events.push(Event { seq: page.next, ..event });
        }
        page.next += 1;
    }
    page.more = page.next < next;
    Ok(page)
}
