//! `HOLDFAST_<SECTION>_<KEY>` variables over the file: `HOLDFAST_NODE_LISTEN=0.0.0.0:7070`.
//!
//! A role is on where the file has its section; a variable changes the role's keys and never turns it on, so that one
//! environment serves nodes of all roles.

use super::ConfigFault;

const SECTIONS: [&str; 5] = ["node", "log", "meta", "data", "gateway"];
const ROLES: [&str; 3] = ["meta", "data", "gateway"];

/// Lays every matching variable over `table`. A value is TOML where it parses as TOML (`true`, `3`, `["a"]`), else text.
pub(super) fn apply(
    table: &mut toml::Table,
    env: impl Iterator<Item = (String, String)>,
    faults: &mut Vec<ConfigFault>,
) {
    let mut found: Vec<(String, String)> = env.filter(|(name, _)| name.starts_with("HOLDFAST_")).collect();
    found.sort();
    for (name, value) in found {
        let lower = name["HOLDFAST_".len()..].to_ascii_lowercase();
        let Some((section, key)) = lower.split_once('_').filter(|(section, _)| SECTIONS.contains(section))
        else {
            continue;
        };
        if ROLES.contains(&section) && !table.contains_key(section) {
            continue;
        }
        let entry = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        match entry.as_table_mut() {
            Some(section) => drop(section.insert(key.to_owned(), value_of(&value))),
            None => faults
                .push(ConfigFault::new(section, format!("{name} cannot be laid over it: not a section"))),
        }
    }
}

fn value_of(text: &str) -> toml::Value {
    format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}
