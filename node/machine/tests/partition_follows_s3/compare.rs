//! Everything that can be read of the machine is what the model says.

use bytes::Bytes;
use holdfast_proto::meta::{
    CountBucket, GetObject, ListObjects, ListParts, ListUploads, ListVersions, Refusal, answer, query::Of,
};

use crate::steps::{Probe, keys};
use crate::support::bucket_id;
use crate::support::model::Model;
use crate::world::World;

impl World {
    pub(crate) fn compare(&self, probe: &Probe) {
        let answer::Ok::Counters(count) =
            self.leader.answer(Of::CountBucket(CountBucket { bucket: bucket_id() }))
        else {
            panic!()
        };
        let got =
            [count.objects, count.versions, count.markers, count.bytes, count.uploads, count.part_bytes];
        assert_eq!(got, self.model.count());
        for key in keys() {
            let of = GetObject { bucket: bucket_id(), key: key.clone().into(), ..GetObject::default() };
            let answer = self.leader.ask(Of::GetObject(of));
            match self.model.current(&key) {
                None => assert_eq!(answer.refusal(), Refusal::NoSuchKey),
                Some(stored) => {
                    let Some(answer::Ok::Object(found)) = answer.ok else { panic!() };
                    assert_eq!(found.version_id.to_vec(), stored.id);
                    assert_eq!(found.version.unwrap().etag, stored.etag);
                    let parts: u64 = found.parts.iter().map(|part| part.row.as_ref().unwrap().size).sum();
                    assert!(found.parts.is_empty() || parts == stored.size);
                }
            }
        }
        self.compare_objects(probe);
        self.compare_versions(probe);
        self.compare_uploads(probe);
    }

    fn compare_objects(&self, probe: &Probe) {
        let visible: Vec<&Vec<u8>> =
            self.model.keys.keys().filter(|key| self.model.current(key).is_some()).collect();
        let (keys, common) =
            Model::roll_up(visible.into_iter(), &probe.prefix, &probe.delimiter, &probe.after);
        let (mut got_keys, mut got_common) = (vec![], vec![]);
        let mut after = Bytes::from(probe.after.clone());
        loop {
            let of = ListObjects {
                bucket: bucket_id(),
                slots: vec![],
                prefix: probe.prefix.clone().into(),
                delimiter: probe.delimiter.clone().into(),
                after: after.clone(),
                limit: probe.limit,
            };
            let answer::Ok::Objects(page) = self.leader.answer(Of::ListObjects(of)) else { panic!() };
            let count = page.keys.len() + page.common_prefixes.len();
            assert!(count == probe.limit as usize || (!page.more && count < probe.limit as usize));
            for listed in &page.keys {
                let row = listed.row.as_ref().unwrap();
                assert_eq!(row.version.to_vec(), self.model.current(&listed.key).unwrap().id);
            }
            got_keys.extend(page.keys.into_iter().map(|listed| listed.key.to_vec()));
            got_common.extend(page.common_prefixes.into_iter().map(|prefix| prefix.to_vec()));
            if !page.more {
                break;
            }
            after = page.last;
        }
        assert_eq!(got_keys, keys, "{probe:?}");
        assert_eq!(got_common, common.into_iter().collect::<Vec<_>>(), "{probe:?}");
    }

    fn compare_versions(&self, probe: &Probe) {
        let (keys, common) = Model::roll_up(self.model.keys.keys(), &probe.prefix, &probe.delimiter, b"");
        let expected: Vec<_> = keys
            .iter()
            .flat_map(|key| {
                let versions = self.model.keys[key].iter().enumerate();
                versions
                    .map(|(at, stored)| (key.clone(), stored.id.clone(), stored.marker, stored.null, at == 0))
            })
            .collect();
        let (mut got, mut got_common) = (vec![], vec![]);
        let mut of = ListVersions {
            bucket: bucket_id(),
            prefix: probe.prefix.clone().into(),
            delimiter: probe.delimiter.clone().into(),
            limit: probe.limit,
            ..ListVersions::default()
        };
        loop {
            let answer::Ok::Versions(page) = self.leader.answer(Of::ListVersions(of.clone())) else {
                panic!()
            };
            let last = page.versions.last().map(|listed| (listed.key.clone(), listed.row.clone().unwrap()));
            let last_common = page.common_prefixes.last().cloned();
            for listed in page.versions {
                let row = listed.row.unwrap();
                got.push((
                    listed.key.to_vec(),
                    row.version.to_vec(),
                    listed.delete_marker,
                    row.null,
                    listed.latest,
                ));
            }
            got_common.extend(page.common_prefixes.into_iter().map(|prefix| prefix.to_vec()));
            if !page.more {
                break;
            }
            match (last, last_common) {
                (Some((key, row)), common) if common.as_ref().is_none_or(|common| *common < key) => {
                    of.key_marker = key;
                    of.version_marker_null = row.null;
                    of.version_marker = if row.null { Bytes::new() } else { row.version };
                }
                (_, Some(common)) => {
                    of.key_marker = common;
                    (of.version_marker, of.version_marker_null) = (Bytes::new(), false);
                }
                (_, None) => panic!("an empty page says there is more"),
            }
        }
        assert_eq!(got, expected, "{probe:?}");
        assert_eq!(got_common, common.into_iter().collect::<Vec<_>>(), "{probe:?}");
    }

    fn compare_uploads(&self, probe: &Probe) {
        let mut expected: Vec<_> =
            self.model.uploads.iter().map(|(id, up)| (up.key.clone(), id.clone())).collect();
        expected.sort();
        let mut got = vec![];
        let mut of = ListUploads { bucket: bucket_id(), limit: probe.limit, ..ListUploads::default() };
        loop {
            let answer::Ok::Uploads(page) = self.leader.answer(Of::ListUploads(of.clone())) else { panic!() };
            if let Some(last) = page.uploads.last() {
                (of.key_marker, of.upload_marker) = (last.key.clone(), last.upload.clone());
            }
            got.extend(page.uploads.into_iter().map(|listed| (listed.key.to_vec(), listed.upload.to_vec())));
            if !page.more {
                break;
            }
        }
        assert_eq!(got, expected);
        for (upload, row) in &self.model.uploads {
            let mut of = ListParts {
                bucket: bucket_id(),
                key: row.key.clone().into(),
                upload: upload.clone().into(),
                after: 0,
                limit: probe.limit,
                bodies: false,
            };
            let mut parts = vec![];
            loop {
                let answer::Ok::Parts(page) = self.leader.answer(Of::ListParts(of.clone())) else { panic!() };
                of.after = page.parts.last().map_or(0, |last| last.part);
                parts.extend(page.parts.into_iter().map(|listed| (listed.part, listed.row.unwrap().size)));
                if !page.more {
                    break;
                }
            }
            let expected: Vec<_> = row.parts.iter().map(|(number, (size, _))| (*number, *size)).collect();
            assert_eq!(parts, expected);
        }
    }
}
