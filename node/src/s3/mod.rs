//! A plain S3 client: what the benchmark measures with and backups are stored by. It signs, sends whole bodies and reads whole
//! answers, and knows nothing of this zone.

mod client;
mod sigv4;

pub(crate) use client::{Answer, Connection, Endpoint, EndpointConfig};
pub(crate) use sigv4::Keys;
