//! Whether a register behaved as if every request had happened at one instant between its begin and its end.
//!
//! Two implementations that share nothing but `step`. [`check`] goes through the history in the order of time and keeps every
//! pair of (state, requests under way that have happened) that explains it so far (Lowe's just-in-time linearization): what it
//! costs follows from how much is under way at once. [`search`] looks for an order, request by request, with a memory of dead ends
//! (Wing and Gong); it is for small histories, to check the first one by.
//!
//! A request whose outcome is not known is under way for ever: it may happen at any time after it began, or never.

use std::collections::{BTreeSet, HashSet};

use super::history::{Action, Event, Told, Value};

/// Explanations that are kept at once, at most.
const EXPLANATIONS_MAX: usize = 200_000;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Holds,
    /// No order explains the answer of this event (its place in the history).
    Broken(usize),
    /// Too much was under way at once.
    TooHard,
}

type State = Option<Value>;

/// The state after an event that happens in `state`; `None` when it cannot have had this answer then.
fn step(state: State, event: &Event) -> Option<State> {
    match (event.action, event.told) {
        (Action::Get, Told::Found(found)) => (state == found).then_some(state),
        (Action::Get, _) => Some(state),
        (Action::Put(value), Told::Done | Told::Unknown) => Some(Some(value)),
        (Action::Delete, Told::Done | Told::Unknown) => Some(None),
        (Action::PutIfAbsent(value), Told::Done) => state.is_none().then_some(Some(value)),
        (Action::PutIfAbsent(_), Told::Refused) => state.is_some().then_some(state),
        (Action::PutIfAbsent(value), Told::Unknown) => Some(state.or(Some(value))),
        (Action::PutIfMatch(expected, value), Told::Done) => (state == Some(expected)).then_some(Some(value)),
        (Action::PutIfMatch(expected, _), Told::Refused) => (state != Some(expected)).then_some(state),
        (Action::PutIfMatch(expected, value), Told::Unknown) => {
            Some(if state == Some(expected) { Some(value) } else { state })
        }
        // An unconditional write is not refused.
        (Action::Put(_) | Action::Delete, Told::Refused) | (_, Told::Found(_)) => None,
    }
}

/// A state, and which of the requests under way have happened, by their places, in order.
type Explanation = (State, Vec<usize>);

/// Checks the events of one register, in the order in which they began.
pub fn check(events: &[Event]) -> Verdict {
    // A read without an answer says nothing.
    let says = |event: &Event| !(event.action == Action::Get && event.told == Told::Unknown);
    // (time, is an end, place): what begins at the instant at which another ends overlaps it.
    let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(events.len() * 2);
    for (place, event) in events.iter().enumerate().filter(|(_, event)| says(event)) {
        moments.push((event.begin, false, place));
        if event.told != Told::Unknown {
            moments.push((event.end, true, place));
        }
    }
    moments.sort_unstable();
    let mut under_way: Vec<usize> = Vec::new();
    let mut explanations: BTreeSet<Explanation> = BTreeSet::from([(None, Vec::new())]);
    for (_, ends, place) in moments {
        if !ends {
            under_way.push(place);
            continue;
        }
        let Some(mut next) = happened(&explanations, place, &under_way, events) else {
            return Verdict::TooHard;
        };
        if next.is_empty() {
            return Verdict::Broken(place);
        }
        under_way.retain(|other| *other != place);
        // From here on nobody asks whether it has.
        next = next
            .into_iter()
            .map(|(state, mut done)| {
                done.retain(|other| *other != place);
                (state, done)
            })
            .collect();
        explanations = next;
    }
    Verdict::Holds
}

/// The explanations in which `place` has happened: those that have it, and those that come to it over others under way. `None`
/// when there are too many.
fn happened(
    explanations: &BTreeSet<Explanation>,
    place: usize,
    under_way: &[usize],
    events: &[Event],
) -> Option<BTreeSet<Explanation>> {
    let mut found = BTreeSet::new();
    let mut seen: HashSet<Explanation> = HashSet::new();
    let mut left: Vec<Explanation> = explanations.iter().cloned().collect();
    while let Some((state, done)) = left.pop() {
        if done.contains(&place) {
            found.insert((state, done));
            continue;
        }
        for other in under_way.iter().filter(|other| !done.contains(other)) {
            let Some(next) = step(state, &events[*other]) else { continue };
            // What nobody was told of, and changes nothing, need not happen.
            if next == state && events[*other].told == Told::Unknown {
                continue;
            }
            let mut more = done.clone();
            let at = more.partition_point(|before| before < other);
            more.insert(at, *other);
            let explanation = (next, more);
            if seen.insert(explanation.clone()) {
                left.push(explanation);
            }
        }
        if seen.len() > EXPLANATIONS_MAX {
            return None;
        }
    }
    Some(found)
}

/// Whether there is an order that explains a small history.
pub fn search(events: &[Event]) -> bool {
    assert!(events.len() <= 64, "for small histories");
    let known = |event: &Event| event.told != Told::Unknown;
    let must: u64 =
        events.iter().enumerate().filter(|(_, event)| known(event)).fold(0, |all, (at, _)| all | 1 << at);
    let mut dead = HashSet::new();
    find(events, must, 0, None, &mut dead)
}

fn find(events: &[Event], must: u64, done: u64, state: State, dead: &mut HashSet<(u64, State)>) -> bool {
    if done & must == must {
        return true;
    }
    if !dead.insert((done, state)) {
        return false;
    }
    // Whoever began after another ended cannot come before it.
    let open = |at: usize| done & (1 << at) == 0;
    let limit = events.iter().enumerate().filter(|(at, event)| open(*at) && event.told != Told::Unknown);
    let limit = limit.map(|(_, event)| event.end).min().unwrap_or(u64::MAX);
    (0..events.len())
        .filter(|at| open(*at) && events[*at].begin <= limit)
        .any(|at| step(state, &events[at]).is_some_and(|next| find(events, must, done | 1 << at, next, dead)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    fn event(action: Action, begin: u64, end: u64, told: Told) -> Event {
        Event { client: 0, register: 0, action, begin, end, told }
    }

    fn put(value: Value, begin: u64, end: u64) -> Event {
        event(Action::Put(value), begin, end, Told::Done)
    }

    fn get(found: Option<Value>, begin: u64, end: u64) -> Event {
        event(Action::Get, begin, end, Told::Found(found))
    }

    fn both(events: &[Event]) -> Verdict {
        let verdict = check(events);
        assert_eq!(verdict == Verdict::Holds, search(events), "{events:#?}");
        verdict
    }

    #[test]
    fn what_happened_in_order_holds() {
        let events = [put(1, 0, 1), get(Some(1), 2, 3), put(2, 4, 5), get(Some(2), 6, 7)];
        assert_eq!(both(&events), Verdict::Holds);
    }

    #[test]
    fn a_lost_write_a_stale_read_and_a_value_that_nobody_wrote_are_found() {
        assert_eq!(both(&[put(1, 0, 1), get(None, 2, 3)]), Verdict::Broken(1), "lost");
        let stale = [put(1, 0, 1), put(2, 2, 3), get(Some(1), 4, 5)];
        assert_eq!(both(&stale), Verdict::Broken(2));
        assert_eq!(both(&[get(Some(9), 0, 1)]), Verdict::Broken(0), "from nowhere");
        let back = [put(1, 0, 1), event(Action::Delete, 2, 3, Told::Done), get(Some(1), 4, 5)];
        assert_eq!(both(&back), Verdict::Broken(2), "deleted and back");
        // Two readers that overlap one write see it in one order.
        let forth_and_back = [put(1, 0, 1), put(2, 2, 9), get(Some(2), 3, 4), get(Some(1), 5, 6)];
        assert_eq!(both(&forth_and_back), Verdict::Broken(3));
    }

    #[test]
    fn what_was_not_answered_may_have_happened_at_any_time_or_never() {
        let lost = |action| event(action, 2, 3, Told::Unknown);
        for found in [Some(1), Some(2)] {
            assert_eq!(both(&[put(1, 0, 1), lost(Action::Put(2)), get(found, 4, 5)]), Verdict::Holds);
        }
        let late = [put(1, 0, 1), lost(Action::Put(2)), get(Some(1), 4, 5), get(Some(2), 6, 7)];
        assert_eq!(both(&late), Verdict::Holds, "it may come late");
        let twice = [put(1, 0, 1), lost(Action::Put(2)), get(Some(2), 4, 5), get(Some(1), 6, 7)];
        assert_eq!(both(&twice), Verdict::Broken(3), "but not go again");
        assert_eq!(both(&[put(1, 0, 1), lost(Action::Delete), get(None, 4, 5)]), Verdict::Holds);
    }

    #[test]
    fn conditions_are_judged_where_the_write_happens() {
        let absent = |value, begin, told| event(Action::PutIfAbsent(value), begin, begin + 1, told);
        assert_eq!(both(&[absent(1, 0, Told::Done), absent(2, 2, Told::Done)]), Verdict::Broken(1));
        assert_eq!(both(&[absent(1, 0, Told::Refused)]), Verdict::Broken(0), "nothing was there");
        let swap = |from, to, begin, told| event(Action::PutIfMatch(from, to), begin, begin + 1, told);
        let both_win = [put(1, 0, 1), swap(1, 2, 2, Told::Done), swap(1, 3, 4, Told::Done)];
        assert_eq!(both(&both_win), Verdict::Broken(2));
        assert_eq!(both(&[put(1, 0, 1), swap(1, 2, 2, Told::Refused)]), Verdict::Broken(1));
        let other = [put(1, 0, 1), event(Action::Put(5), 2, 3, Told::Unknown), swap(1, 2, 4, Told::Refused)];
        assert_eq!(both(&other), Verdict::Holds, "the write without an answer was in between");
    }

    /// Random small histories, right ones and wrong ones: both implementations say the same.
    #[test]
    fn two_implementations_agree() {
        let mut held = 0;
        for seed in 0..4000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let count = rng.random_range(1..9);
            let mut events: Vec<Event> = (0..count)
                .map(|number| {
                    let begin = rng.random_range(0..12);
                    let value = number as u64 + 1;
                    let any = rng.random_range(1..=count as u64);
                    let action = match rng.random_range(0..6) {
                        0 | 1 => Action::Put(value),
                        2 => Action::PutIfAbsent(value),
                        3 => Action::PutIfMatch(any, value),
                        4 => Action::Delete,
                        _ => Action::Get,
                    };
                    let conditional = matches!(action, Action::PutIfAbsent(_) | Action::PutIfMatch(..));
                    let told = match (rng.random_range(0..6), action) {
                        (0, _) => Told::Unknown,
                        (_, Action::Get) => Told::Found(rng.random_bool(0.7).then_some(any)),
                        (1 | 2, _) if conditional => Told::Refused,
                        _ => Told::Done,
                    };
                    event(action, begin, begin + rng.random_range(1..6), told)
                })
                .collect();
            events.sort_by_key(|event| event.begin);
            held += usize::from(both(&events) == Verdict::Holds);
        }
        assert!((400..3600).contains(&held), "{held} of 4000 hold: the two are hardly compared");
    }
}
