//! Defaults of region, zone and rack from cloud-init's instance data, where the machine has it.

use std::path::Path;

use serde_json::Value;

use super::NodeConfig;

const INSTANCE_DATA: &str = "/run/cloud-init/instance-data.json";
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// What the cloud says of this machine. Empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Instance {
    region: String,
    zone: String,
    rack: String,
    host: String,
}

/// Reads the instance data. A machine without it, or with one that cannot be read, has no defaults.
pub(super) fn read() -> Instance {
    let mut instance = std::fs::read(Path::new(INSTANCE_DATA)).map(|raw| parse(&raw)).unwrap_or_default();
    instance.host = std::fs::read_to_string(HOST_NAME).unwrap_or_default().trim().to_owned();
    instance
}

fn parse(raw: &[u8]) -> Instance {
    let data: Value = serde_json::from_slice(raw).unwrap_or(Value::Null);
    let first = |paths: &[&str]| {
        paths
            .iter()
            .filter_map(|path| data.pointer(path)?.as_str())
            .find(|text| !text.is_empty())
            .unwrap_or_default()
            .to_owned()
    };
    Instance {
        region: first(&["/v1/region"]),
        zone: first(&["/v1/availability_zone", "/v1/availability-zone"]),
        rack: first(&["/ds/meta_data/placement/partition-number", "/ds/meta_data/rack"]),
        host: String::new(),
    }
}

impl Instance {
    /// Fills what the file left empty. `us-east-1` is the region that S3 clients assume.
    pub(super) fn fill(self, node: &mut NodeConfig) {
        for (field, default) in [
            (&mut node.region, if self.region.is_empty() { "us-east-1".to_owned() } else { self.region }),
            (&mut node.zone, self.zone),
            (&mut node.rack, self.rack),
            (&mut node.host, self.host),
        ] {
            if field.is_empty() {
                *field = default;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_wins_over_the_cloud() {
        let raw = br#"{"v1": {"region": "eu-1", "availability_zone": "eu-1a"}, "ds": {"meta_data": {"rack": "r7"}}}"#;
        let mut node = NodeConfig { zone: "mine".to_owned(), ..NodeConfig::default() };
        parse(raw).fill(&mut node);
        assert_eq!((node.region.as_str(), node.zone.as_str(), node.rack.as_str()), ("eu-1", "mine", "r7"));
    }

    #[test]
    fn broken_instance_data_is_no_default() {
        assert_eq!(parse(b"not json"), Instance::default());
    }
}
