//! Merges sorted pages of several partitions into one exact page.
//!
//! Every source answers "your entries greater than X, at most n of them, and whether there are more". A source that has
//! more bounds the merge at its last entry: what comes after may be in it. So the merge takes the least entry over all
//! sources that hold one, and asks a source again as soon as it has run out and has more. Equal entries (a common prefix
//! that several partitions found) count once.

use std::collections::VecDeque;
use std::future::Future;

use crate::error::Error;

/// A page of one source: entries ascending, and whether greater ones were left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page<E> {
    pub(crate) entries: Vec<E>,
    pub(crate) more: bool,
}

struct Source<E> {
    buffered: VecDeque<E>,
    more: bool,
    /// The last entry it gave: where it goes on.
    last: Option<E>,
    ask: usize,
}

/// The `limit` least entries over `asks.len()` sources, and whether there are more. `asks` is how many entries each source
/// is first asked for; a source that runs out is asked for twice as many. `fetch(source, after, n)` gives the entries of a
/// source after one of its own, or from the beginning.
pub(crate) async fn merge<E, F>(
    asks: &[usize],
    limit: usize,
    fetch: impl Fn(usize, Option<E>, usize) -> F,
) -> Result<Page<E>, Error>
where
    E: Ord + Clone,
    F: Future<Output = Result<Page<E>, Error>>,
{
    let mut sources: Vec<Source<E>> = asks
        .iter()
        .map(|ask| Source {
            buffered: VecDeque::new(),
            more: true,
            last: None,
            ask: (*ask).clamp(1, limit.max(1)),
        })
        .collect();
    let mut merged: Vec<E> = Vec::with_capacity(limit.min(1024));
    if limit == 0 {
        return Ok(Page { entries: merged, more: false });
    }
    loop {
        // A source that ran out here gave the last merged entry: what it still has is greater.
        if merged.len() == limit && sources.iter().any(|source| source.buffered.is_empty() && source.more) {
            return Ok(Page { entries: merged, more: true });
        }
        refill(&mut sources, limit, &fetch).await?;
        while sources.iter().all(|source| !source.buffered.is_empty() || !source.more) {
            let least = (0..sources.len())
                .filter(|at| !sources[*at].buffered.is_empty())
                .min_by(|a, b| sources[*a].buffered.front().cmp(&sources[*b].buffered.front()));
            let Some(entry) = least.and_then(|at| sources[at].buffered.pop_front()) else {
                return Ok(Page { entries: merged, more: false });
            };
            if merged.last() == Some(&entry) {
                continue;
            }
            if merged.len() == limit {
                return Ok(Page { entries: merged, more: true });
            }
            merged.push(entry);
        }
    }
}

/// Asks every source that has run out and has more, at the same time.
async fn refill<E, F>(
    sources: &mut [Source<E>],
    limit: usize,
    fetch: &impl Fn(usize, Option<E>, usize) -> F,
) -> Result<(), Error>
where
    E: Ord + Clone,
    F: Future<Output = Result<Page<E>, Error>>,
{
    let dry = |source: &Source<E>| source.buffered.is_empty() && source.more;
    let calls = sources.iter().enumerate().filter(|(_, source)| dry(source)).map(|(at, source)| {
        let call = fetch(at, source.last.clone(), source.ask);
        async move { call.await.map(|page| (at, page)) }
    });
    for (at, page) in futures::future::try_join_all(calls).await? {
        let source = &mut sources[at];
        source.more = page.more;
        source.ask = (source.ask * 2).min(limit);
        if let Some(last) = page.entries.last() {
            if source.last.as_ref().is_some_and(|before| page.entries.first() <= Some(before)) {
                return Err(Error::internal("a partition's listing went back"));
            }
            source.last = Some(last.clone());
        } else if page.more {
            return Err(Error::internal("a partition's listing has more and gave nothing"));
        }
        source.buffered = page.entries.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeSet;

    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;

    /// Merges fake partitions; also how often a partition was asked.
    fn run(parts: &[BTreeSet<u16>], asks: &[usize], limit: usize, short: bool) -> (Page<u16>, usize) {
        let calls = Cell::new(0);
        let merged = block_on(merge(asks, limit, |at, after: Option<u16>, n| {
            calls.set(calls.get() + 1);
            // A partition may answer less than it was asked for.
            let n = if short { n.div_ceil(2) } else { n };
            let rest: Vec<u16> =
                parts[at].iter().copied().filter(|entry| after.is_none_or(|after| *entry > after)).collect();
            let page = Page { entries: rest.iter().copied().take(n).collect(), more: rest.len() > n };
            async move { Ok(page) }
        }));
        (merged.unwrap(), calls.get())
    }

    proptest! {
        #[test]
        fn it_is_the_sorted_union(
            parts in prop::collection::vec(prop::collection::btree_set(0u16..60, 0..40), 1..6),
            ask in 1usize..20,
            limit in 0usize..50,
            short in any::<bool>(),
        ) {
            let union: Vec<u16> = parts.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
            let (page, _) = run(&parts, &vec![ask; parts.len()], limit, short);
            prop_assert_eq!(&page.entries[..], &union[..limit.min(union.len())]);
            prop_assert_eq!(page.more, limit > 0 && union.len() > limit);
        }
    }

    #[test]
    fn a_page_that_is_enough_is_asked_once() {
        let parts: Vec<BTreeSet<u16>> = (0..4).map(|at| (0..100).map(|n| n * 4 + at).collect()).collect();
        let (page, calls) = run(&parts, &[30; 4], 100, false);
        assert_eq!((page.entries.len(), page.more, calls), (100, true, 4));
    }

    #[test]
    fn a_source_that_goes_back_or_gives_nothing_is_an_error() {
        let stuck = block_on(merge(&[1], 3, |_, _, _| async { Ok(Page { entries: vec![1], more: true }) }));
        assert!(stuck.is_err());
        let empty =
            block_on(merge::<u8, _>(&[1], 3, |_, _, _| async { Ok(Page { entries: vec![], more: true }) }));
        assert!(empty.is_err());
    }
}
