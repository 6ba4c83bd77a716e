//! The default storage class, by what the operator asked for or by how many hosts there are (DESIGN.md section 4).

use std::collections::BTreeSet;

use holdfast_proto::meta::StorageClass;
use holdfast_proto::v1::{Codec, Scheme};

use super::algorithm::Candidate;
use crate::config::MetaConfig;

/// The default class and how far its shards are spread.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) class: StorageClass,
    /// Shards of a stripe may share a host: there are too few hosts.
    pub(crate) shared_hosts: bool,
    /// What the operator should know of it.
    pub(crate) warning: Option<String>,
}

/// `copies` full copies.
pub(crate) fn copies(copies: u32) -> Scheme {
    Scheme { codec: Codec::Copies.into(), data: 1, parity: copies - 1 }
}

/// How many targets a placement group of `class` has.
pub(crate) fn width(class: &StorageClass) -> usize {
    let of = |scheme: &Option<Scheme>| scheme.as_ref().map_or(0, |scheme| scheme.data + scheme.parity);
    of(&class.scheme).max(of(&class.small)) as usize
}

/// Chooses the class of new zones.
///
/// # Errors
/// One sentence when the targets cannot bear what is asked, or there is one target and nobody said `copies = 1`.
pub(crate) fn choose(config: &MetaConfig, targets: &[Candidate]) -> Result<Choice, String> {
    let hosts = targets.iter().map(|target| target.domain.as_str()).collect::<BTreeSet<_>>().len();
    let count = targets.len();
    let (scheme, small) = if let Some(code) = config.scheme {
        (code.scheme(), copies(code.parity + 1))
    } else if let Some(n) = config.copies {
        (copies(n), copies(n))
    } else {
        match (hosts, count) {
            (_, 0 | 1) => {
                return Err("one target only: data would not survive its disk; say `meta.copies = 1` if that is wanted"
                    .to_owned());
            }
            (1 | 2, _) => {
                let n = count.min(3) as u32;
                (copies(n), copies(n))
            }
            (3..=5, _) => (copies(3), copies(3)),
            _ => (Scheme { codec: Codec::RsGf8.into(), data: 4, parity: 2 }, copies(3)),
        }
    };
    let class = StorageClass {
        name: "STANDARD".to_owned(),
        scheme: Some(scheme),
        small: Some(small),
        media: "default".to_owned(),
    };
    let width = width(&class);
    if width > count {
        return Err(format!("the storage class needs {width} targets; {count} have joined"));
    }
    let shared_hosts = width > hosts;
    let warning = if width == 1 {
        Some("one copy of everything: a lost disk is lost data".to_owned())
    } else if shared_hosts {
        Some(format!("{width} shards on {hosts} host(s): a lost host may make data unreadable"))
    } else {
        None
    };
    Ok(Choice { class, shared_hosts, warning })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(hosts: usize, each: usize) -> Vec<Candidate> {
        (0..hosts * each)
            .map(|n| Candidate { id: n as u32 + 1, domain: format!("h{}", n / each), weight: 1 })
            .collect()
    }

    fn scheme_of(config: &MetaConfig, hosts: usize, each: usize) -> (u32, u32) {
        let scheme = choose(config, &targets(hosts, each)).unwrap().class.scheme.unwrap();
        (scheme.data, scheme.parity)
    }

    #[test]
    fn the_number_of_hosts_decides() {
        let config = MetaConfig::default();
        assert_eq!(scheme_of(&config, 6, 1), (4, 2));
        assert_eq!(scheme_of(&config, 12, 2), (4, 2));
        assert_eq!(scheme_of(&config, 3, 1), (1, 2));
        assert_eq!(scheme_of(&config, 5, 4), (1, 2));
        assert_eq!(scheme_of(&config, 2, 1), (1, 1));
        assert_eq!(scheme_of(&config, 1, 4), (1, 2));
        assert!(choose(&config, &targets(1, 4)).unwrap().warning.is_some());
        assert!(choose(&config, &targets(6, 1)).unwrap().warning.is_none());
    }

    #[test]
    fn one_target_has_to_be_asked_for() {
        assert!(choose(&MetaConfig::default(), &targets(1, 1)).is_err());
        let one = MetaConfig { copies: Some(1), ..MetaConfig::default() };
        assert_eq!(scheme_of(&one, 1, 1), (1, 0));
    }

    #[test]
    fn small_bodies_bear_what_the_code_bears() {
        let config =
            MetaConfig { scheme: Some("8+3".to_owned().try_into().unwrap()), ..MetaConfig::default() };
        let choice = choose(&config, &targets(11, 1)).unwrap();
        assert_eq!(choice.class.small.unwrap().parity, 3);
        assert!(choose(&config, &targets(10, 1)).is_err());
    }
}
