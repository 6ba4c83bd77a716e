//! A stored body, parsed: where each of its stripes is.

use bytes::Bytes;
use holdfast_proto::id::{PgId, WriteId};
use holdfast_proto::meta::{Body, Extent};
use holdfast_proto::v1::Scheme;

use crate::error::Error;
use crate::geometry::Geometry;

/// Inline bytes, or stripes in placement groups.
#[derive(Debug, Clone)]
pub(crate) enum Layout {
    Inline(Bytes),
    Coded(Box<Coded>),
}

#[derive(Debug, Clone)]
pub(crate) struct Coded {
    pub(crate) write: WriteId,
    pub(crate) scheme: Scheme,
    pub(crate) geometry: Geometry,
    /// Runs of stripes: (first, how many, group), consecutive from stripe 0.
    runs: Vec<(u32, u32, PgId)>,
}

impl Layout {
    /// Checks a body's manifest.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when it contradicts itself.
    pub(crate) fn of(body: &Body) -> Result<Self, Error> {
        let fault = |what: &str| Error::internal(format!("manifest of write {:?}: {what}", body.write));
        if let Some(bytes) = &body.inline {
            if bytes.len() as u64 != body.length || !body.extents.is_empty() {
                return Err(fault("inline bytes of another length, or extents too"));
            }
            return Ok(Self::Inline(bytes.clone()));
        }
        let Some(first) = body.extents.first() else {
            return if body.length == 0 { Ok(Self::Inline(Bytes::new())) } else { Err(fault("no extents")) };
        };
        let scheme = first.scheme.ok_or_else(|| fault("no scheme"))?;
        let geometry = Geometry::new(&scheme, body.length)?;
        let write = WriteId::from_wire(&body.write).map_err(|bad| fault(&bad.to_string()))?;
        let (mut runs, mut next) = (Vec::with_capacity(body.extents.len()), 0);
        for extent in &body.extents {
            if extent.first_stripe != next || extent.scheme != Some(scheme) || extent.write != body.write {
                return Err(fault("extents that do not follow one another"));
            }
            runs.push((extent.first_stripe, extent.stripes, PgId::new(extent.pg)));
            next = extent.first_stripe.saturating_add(extent.stripes);
        }
        if next != geometry.stripes() {
            return Err(fault("extents that do not cover it"));
        }
        Ok(Self::Coded(Box::new(Coded { write, scheme, geometry, runs })))
    }

    pub(crate) fn coded(&self) -> Option<(WriteId, Geometry)> {
        match self {
            Self::Inline(_) => None,
            Self::Coded(coded) => Some((coded.write, coded.geometry)),
        }
    }

    /// Every stripe with its group.
    pub(crate) fn stripes(&self) -> impl Iterator<Item = (u32, PgId)> + '_ {
        let runs = match self {
            Self::Inline(_) => &[][..],
            Self::Coded(coded) => &coded.runs,
        };
        runs.iter().flat_map(|(first, count, pg)| (*first..first + count).map(|stripe| (stripe, *pg)))
    }
}

impl Coded {
    /// One stripe of a write of `length` bytes; of the others nothing is known.
    ///
    /// # Errors
    /// As [`Geometry::new`]; also when the write has no such stripe.
    pub(crate) fn stripe(
        write: WriteId,
        scheme: Scheme,
        length: u64,
        stripe: u32,
        pg: PgId,
    ) -> Result<Self, Error> {
        let geometry = Geometry::new(&scheme, length)?;
        if stripe >= geometry.stripes() {
            return Err(Error::internal(format!("a write of {length} bytes has no stripe {stripe}")));
        }
        Ok(Self { write, scheme, geometry, runs: vec![(stripe, 1, pg)] })
    }

    /// The group of a stripe.
    pub(crate) fn pg(&self, stripe: u32) -> Option<PgId> {
        let at = self.runs.partition_point(|(first, _, _)| *first <= stripe).checked_sub(1)?;
        let (first, count, pg) = self.runs[at];
        (stripe - first < count).then_some(pg)
    }
}

/// The extents of a write whose stripes, in order, are in `groups`.
pub fn extents(write: &WriteId, scheme: Scheme, geometry: &Geometry, groups: &[PgId]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (stripe, pg) in groups.iter().enumerate() {
        let stripe = stripe as u32;
        let length = geometry.stripe_bytes(stripe);
        match extents.last_mut() {
            Some(last) if last.pg == pg.get() => {
                last.stripes += 1;
                last.length += length;
            }
            _ => extents.push(Extent {
                write: write.to_wire(),
                pg: pg.get(),
                scheme: Some(scheme),
                first_stripe: stripe,
                stripes: 1,
                offset: geometry.stripe_offset(stripe),
                length,
            }),
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::Codec;
    use proptest::prelude::*;

    use super::*;

    const SCHEME: Scheme = Scheme { codec: Codec::RsGf8 as i32, data: 4, parity: 2 };

    proptest! {
        #[test]
        fn extents_parse_back(groups in prop::collection::vec(0u32..3, 1..40), short in 0u64..(4 << 20)) {
            let length = groups.len() as u64 * (4 << 20) - short;
            let geometry = Geometry::new(&SCHEME, length).unwrap();
            let groups: Vec<PgId> = groups.into_iter().map(PgId::new).collect();
            let write = WriteId::from_bytes([1; 16]);
            let extents = extents(&write, SCHEME, &geometry, &groups);
            prop_assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), length);
            let body = Body { write: write.to_wire(), length, inline: None, extents };
            let layout = Layout::of(&body).unwrap();
            prop_assert_eq!(layout.stripes().map(|(_, pg)| pg).collect::<Vec<_>>(), groups.clone());
            let Layout::Coded(coded) = layout else { return Err(TestCaseError::fail("inline")) };
            for (stripe, pg) in groups.iter().enumerate() {
                prop_assert_eq!(coded.pg(stripe as u32), Some(*pg));
            }
            prop_assert_eq!(coded.pg(groups.len() as u32), None);
        }
    }

    #[test]
    fn manifests_that_contradict_themselves_are_refused() {
        let geometry = Geometry::new(&SCHEME, 9 << 20).unwrap();
        let write = WriteId::from_bytes([1; 16]);
        let good = Body {
            write: write.to_wire(),
            length: 9 << 20,
            inline: None,
            extents: extents(&write, SCHEME, &geometry, &[PgId::new(1), PgId::new(2), PgId::new(2)]),
        };
        assert!(Layout::of(&good).is_ok());
        let mut gap = good.clone();
        gap.extents.remove(0);
        let mut short = good.clone();
        short.extents.pop();
        let mut longer = good.clone();
        longer.length += 4 << 20;
        let mut both = good.clone();
        both.inline = Some(Bytes::new());
        for bad in [gap, short, longer, both, Body { length: 1, ..Default::default() }] {
            assert!(Layout::of(&bad).is_err(), "{bad:?}");
        }
        assert!(matches!(Layout::of(&Body::default()), Ok(Layout::Inline(_))));
    }
}
