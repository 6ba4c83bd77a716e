//! Which zone a question is put to: `--endpoint`, `-c`, `HOLDFAST_ENDPOINT`, or the `dev` zone of this directory.

use std::path::{Path, PathBuf};

use clap::Args;

use super::UsageError;
use crate::config;
use crate::dev::state::DevState;
use crate::node::contact::Contact;

/// Options of every command that asks a zone.
#[derive(Debug, Args)]
pub(super) struct ZoneArgs {
    /// gRPC address of any node: host:port or http://host:port
    #[arg(long, env = "HOLDFAST_ENDPOINT", value_name = "ADDR")]
    endpoint: Option<String>,
    /// Ask the zone of this node's configuration
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// JSON on standard output
    #[arg(long)]
    pub(super) json: bool,
}

impl ZoneArgs {
    /// How to reach the zone.
    ///
    /// # Errors
    /// [`UsageError`] when nothing says where it is.
    pub(super) fn contact(&self) -> anyhow::Result<Contact> {
        // A configuration named on this line wins over an endpoint from the environment.
        if let Some(path) = &self.config {
            let config = config::load(path)?;
            let own =
                if config.node.advertise.is_empty() { config.node.listen } else { config.node.advertise };
            return Ok(Contact::new(std::iter::once(own).chain(config.node.seeds).collect()));
        }
        if let Some(endpoint) = &self.endpoint {
            return Ok(Contact::new(vec![address(endpoint)?]));
        }
        let state = DevState::read(Path::new(crate::dev::DATA_DIR))?.ok_or_else(|| {
            UsageError(format!(
                "which zone? say --endpoint HOST:PORT or -c NODE.TOML, set HOLDFAST_ENDPOINT, or run this beside the {} \
                 of `holdfast dev`",
                crate::dev::DATA_DIR
            ))
        })?;
        Ok(Contact::new(state.meta_addresses()))
    }
}

fn address(text: &str) -> Result<String, UsageError> {
    let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() && !address.contains('/') => {
            Ok(address.to_owned())
        }
        _ => Err(UsageError(format!("{text:?} is not an endpoint: host:port or http://host:port"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses_or_urls() {
        assert_eq!(address("http://127.0.0.1:7000/").unwrap(), "127.0.0.1:7000");
        assert_eq!(address("meta-1:7070").unwrap(), "meta-1:7070");
        assert!(address("https://x:1").is_err());
        assert!(address("meta-1").is_err());
    }
}
