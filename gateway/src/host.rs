//! Virtual-host style: which bucket a `Host` header names. A host outside the configured domains is path style, so that
//! an address or a load balancer's name works as it is.

use s3s::host::{S3Host, VirtualHost};

use crate::error::S3Result;

/// The base domains of virtual-host style.
#[derive(Debug, Clone, Default)]
pub(crate) struct Domains(Vec<String>);

impl Domains {
    /// Longest first, so that the most specific base domain wins.
    pub(crate) fn new(domains: &[String]) -> Self {
        let mut domains: Vec<String> = domains.iter().map(|domain| domain.to_ascii_lowercase()).collect();
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.len()));
        Self(domains)
    }

    /// The bucket in a `Host` header, as it was sent.
    pub(crate) fn bucket<'h>(&self, host: &'h str) -> Option<&'h str> {
        self.0.iter().find_map(|domain| {
            let host = match domain.contains(':') {
                true => host,
                false => without_port(host),
            };
            let at = host.len().checked_sub(domain.len())?;
            let (bucket, tail) = (host.get(..at)?, host.get(at..)?);
            tail.eq_ignore_ascii_case(domain).then(|| bucket.strip_suffix('.')).flatten()
        })
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

impl S3Host for Domains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let virtual_host = VirtualHost::new(host);
        Ok(match self.bucket(host) {
            Some(bucket) => virtual_host.with_bucket(bucket),
            None => virtual_host,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_found_under_the_configured_domains_only() {
        let domains = Domains::new(&["s3.example.com".to_owned(), "eu.s3.example.com".to_owned()]);
        assert_eq!(domains.bucket("photos.s3.example.com"), Some("photos"));
        assert_eq!(domains.bucket("photos.s3.example.com:9000"), Some("photos"));
        assert_eq!(domains.bucket("a.b.S3.Example.com"), Some("a.b"));
        assert_eq!(domains.bucket("photos.eu.s3.example.com"), Some("photos"));
        assert_eq!(domains.bucket("s3.example.com"), None);
        assert_eq!(domains.bucket("xs3.example.com"), None);
        assert_eq!(domains.bucket("localhost:9000"), None);
        assert_eq!(Domains::default().bucket("photos.s3.example.com"), None);
    }
}
