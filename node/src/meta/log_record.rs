//! A log entry as raft-engine keeps it: a protobuf-2 message whose bytes are exactly those of `holdfast.raft.v1.Entry`.
//! raft-engine only accepts that older protobuf type, so this one is written by hand; it stores already encoded fields
//! and copies a payload once, into the batch.

use std::any::Any;

use bytes::Bytes;
use protobuf::reflect::MessageDescriptor;
use protobuf::well_known_types::BytesValue;
use protobuf::{Clear, CodedInputStream, CodedOutputStream, Message, ProtobufResult, UnknownFields, rt};
use raft_engine::MessageExt;

/// What the payload of a record is: the field number of `Entry.payload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum RecordKind {
    /// Nothing.
    #[default]
    Blank,
    /// An encoded `CommandBatch`.
    Commands,
    /// An encoded `Membership`.
    Membership,
}

/// One log entry, encoded.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct LogRecord {
    /// Position in the group's log.
    pub(crate) index: u64,
    /// Term of the leader that wrote it.
    pub(crate) term: u64,
    /// What `payload` is.
    pub(crate) kind: RecordKind,
    /// Encoded payload; empty for a blank.
    pub(crate) payload: Bytes,
    unknown: UnknownFields,
}

const LOG_ID: u32 = 1;
const BLANK: u32 = 2;
const COMMANDS: u32 = 3;
const MEMBERSHIP: u32 = 4;
const LOG_ID_TERM: u32 = 1;
const LOG_ID_NODE: u32 = 2;
const LOG_ID_INDEX: u32 = 3;

impl LogRecord {
    /// A record.
    pub(crate) fn new(index: u64, term: u64, kind: RecordKind, payload: Bytes) -> Self {
        Self { index, term, kind, payload, unknown: UnknownFields::new() }
    }

    /// Bytes of the record, encoded, nearly.
    pub(crate) fn weight(&self) -> u64 {
        self.payload.len() as u64 + 24
    }

    fn log_id_size(&self) -> u32 {
        let field = |value: u64| if value == 0 { 0 } else { 1 + rt::compute_raw_varint64_size(value) };
        field(self.term) + field(self.index)
    }

    fn merge_log_id(&mut self, is: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
        let len = is.read_raw_varint64()?;
        let limit = is.push_limit(len)?;
        while !is.eof()? {
            let (field, wire_type) = is.read_tag_unpack()?;
            match field {
                LOG_ID_TERM => self.term = is.read_uint64()?,
                LOG_ID_NODE => {
                    is.read_uint64()?;
                }
                LOG_ID_INDEX => self.index = is.read_uint64()?,
                _ => rt::read_unknown_or_skip_group(field, wire_type, is, &mut self.unknown)?,
            }
        }
        is.pop_limit(limit);
        Ok(())
    }
}

impl Message for LogRecord {
    fn descriptor(&self) -> &'static MessageDescriptor {
        Self::descriptor_static()
    }

    fn is_initialized(&self) -> bool {
        true
    }

    fn merge_from(&mut self, is: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
        while !is.eof()? {
            let (field, wire_type) = is.read_tag_unpack()?;
            match field {
                LOG_ID => self.merge_log_id(is)?,
                BLANK => {
                    is.read_bool()?;
                    self.kind = RecordKind::Blank;
                }
                COMMANDS | MEMBERSHIP => {
                    self.kind = if field == COMMANDS { RecordKind::Commands } else { RecordKind::Membership };
                    self.payload = is.read_bytes()?.into();
                }
                _ => rt::read_unknown_or_skip_group(field, wire_type, is, &mut self.unknown)?,
            }
        }
        Ok(())
    }

    fn compute_size(&self) -> u32 {
        let log_id = self.log_id_size();
        let payload = match self.kind {
            RecordKind::Blank => 2,
            _ => rt::bytes_size(COMMANDS, &self.payload),
        };
        1 + rt::compute_raw_varint32_size(log_id) + log_id + payload
    }

    fn get_cached_size(&self) -> u32 {
        self.compute_size()
    }

    fn write_to_with_cached_sizes(&self, os: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
        os.write_tag(LOG_ID, protobuf::wire_format::WireType::WireTypeLengthDelimited)?;
        os.write_raw_varint32(self.log_id_size())?;
        if self.term != 0 {
            os.write_uint64(LOG_ID_TERM, self.term)?;
        }
        if self.index != 0 {
            os.write_uint64(LOG_ID_INDEX, self.index)?;
        }
        match self.kind {
            RecordKind::Blank => os.write_bool(BLANK, true),
            RecordKind::Commands => os.write_bytes(COMMANDS, &self.payload),
            RecordKind::Membership => os.write_bytes(MEMBERSHIP, &self.payload),
        }
    }

    fn get_unknown_fields(&self) -> &UnknownFields {
        &self.unknown
    }

    fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
        &mut self.unknown
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }

    fn new() -> Self {
        Self::default()
    }

    fn descriptor_static() -> &'static MessageDescriptor {
        // Only reflection asks, and nobody reflects on a record.
        BytesValue::descriptor_static()
    }

    fn default_instance() -> &'static Self {
        static INSTANCE: std::sync::OnceLock<LogRecord> = std::sync::OnceLock::new();
        INSTANCE.get_or_init(Self::default)
    }
}

impl Clear for LogRecord {
    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Names the record type to raft-engine.
#[derive(Debug)]
pub(crate) struct LogRecords;

impl MessageExt for LogRecords {
    type Entry = LogRecord;

    fn index(record: &LogRecord) -> u64 {
        record.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::raft as wire;
    use prost::Message as _;

    fn wire_of(record: &LogRecord) -> wire::Entry {
        let payload = match record.kind {
            RecordKind::Blank => wire::entry::Payload::Blank(true),
            RecordKind::Commands => wire::entry::Payload::Commands(record.payload.clone()),
            RecordKind::Membership => {
                wire::entry::Payload::Membership(wire::Membership::decode(record.payload.as_ref()).unwrap())
            }
        };
        let log_id = wire::LogId { term: record.term, node: 0, index: record.index };
        wire::Entry { log_id: Some(log_id), payload: Some(payload) }
    }

    #[test]
    fn a_record_is_the_wire_form_of_its_entry() {
        let membership =
            wire::Membership { configs: vec![wire::NodeSet { nodes: vec![1, 2] }], nodes: vec![1, 2, 3] };
        for record in [
            LogRecord::new(0, 0, RecordKind::Blank, Bytes::new()),
            LogRecord::new(u64::MAX, 1 << 40, RecordKind::Commands, Bytes::from(vec![7; 5000])),
            LogRecord::new(9, 2, RecordKind::Commands, Bytes::new()),
            LogRecord::new(300, 3, RecordKind::Membership, membership.encode_to_vec().into()),
        ] {
            let ours = record.write_to_bytes().unwrap();
            assert_eq!(ours, wire_of(&record).encode_to_vec());
            assert_eq!(LogRecord::parse_from_bytes(&ours).unwrap(), record);
        }
    }
}
