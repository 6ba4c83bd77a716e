//! Whether listings show what was there: a key that was added before a listing began and not removed before it ended is in it,
//! one that was removed before it began, or not yet added when it ended, is not.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Listing, Member};

/// What listings show that they should not, or do not that they should, in words.
pub fn check(members: &[Member], listings: &[Listing]) -> Vec<String> {
    let known: BTreeMap<&str, &Member> = members.iter().map(|member| (member.key.as_str(), member)).collect();
    let mut wrong = Vec::new();
    for (number, listing) in listings.iter().enumerate() {
        let shown: BTreeSet<&str> = listing.keys.iter().map(String::as_str).collect();
        if shown.len() != listing.keys.len() || !listing.keys.is_sorted() {
            wrong.push(format!("listing {number} is out of order, or has a key twice"));
        }
        for key in &shown {
            match known.get(key) {
                None => wrong.push(format!("listing {number} shows {key}, which nobody added")),
                Some(member) if !may_show(member, listing) => {
                    wrong.push(format!("listing {number} shows {key}, which was removed or not added yet"));
                }
                Some(_) => {}
            }
        }
        for member in members.iter().filter(|member| must_show(member, listing)) {
            if !shown.contains(member.key.as_str()) {
                wrong.push(format!("listing {number} does not show {}, which was there", member.key));
            }
        }
    }
    wrong
}

fn may_show(member: &Member, listing: &Listing) -> bool {
    let began = member.added.is_some_and(|added| added.begin <= listing.end);
    began && !member.removed.is_some_and(|removed| removed.done && removed.end < listing.begin)
}

fn must_show(member: &Member, listing: &Listing) -> bool {
    let was_there = member.added.is_some_and(|added| added.done && added.end < listing.begin);
    was_there && member.removed.is_none_or(|removed| removed.begin > listing.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::history::Change;

    fn change(begin: u64, end: u64, done: bool) -> Option<Change> {
        Some(Change { begin, end, done })
    }

    fn listing(begin: u64, end: u64, keys: &[&str]) -> Listing {
        Listing { begin, end, keys: keys.iter().map(ToString::to_string).collect() }
    }

    fn found(member: &Member, listing: Listing) -> usize {
        check(std::slice::from_ref(member), &[listing]).len()
    }

    #[test]
    fn what_is_there_is_shown_and_what_is_not_is_not() {
        let member = Member { key: "a".into(), added: change(10, 20, true), removed: change(40, 50, true) };
        assert_eq!(found(&member, listing(25, 30, &["a"])), 0);
        assert_eq!(found(&member, listing(25, 30, &[])), 1, "lost");
        assert_eq!(found(&member, listing(60, 70, &["a"])), 1, "deleted and back");
        assert_eq!(found(&member, listing(1, 5, &["a"])), 1, "before it was added");
        assert_eq!(found(&member, listing(60, 70, &["b"])), 1, "a phantom");
        assert_eq!(found(&member, listing(60, 70, &[])), 0);
        for keys in [&["a"][..], &[]] {
            assert_eq!(found(&member, listing(15, 30, keys)), 0, "it was being added");
            assert_eq!(found(&member, listing(30, 45, keys)), 0, "it was being removed");
        }
    }

    #[test]
    fn what_was_not_answered_may_be_shown_or_not() {
        let added = Member { key: "a".into(), added: change(10, 20, false), removed: None };
        let removed = Member { key: "a".into(), added: change(1, 2, true), removed: change(10, 20, false) };
        for keys in [&["a"][..], &[]] {
            assert_eq!(found(&added, listing(25, 30, keys)), 0);
            assert_eq!(found(&removed, listing(25, 30, keys)), 0);
        }
        assert_eq!(found(&added, listing(25, 30, &["a", "a"])), 1, "twice");
    }
}
