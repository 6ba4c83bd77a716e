//! Rows in pieces: each row is the length of its key, the length of its value (u32, little-endian), key, value. The bytes of all
//! pieces together are what a snapshot's digest is over.

use anyhow::{bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};

use super::depot::Depot;
use super::manifest::{GroupRows, Piece, hex_of};

/// A piece ends with the row that makes it this long, bytes.
const PIECE_BYTES: usize = 16 << 20;
const HEAD: usize = 8;

/// Fills pieces and puts them.
pub(super) struct Writer<'a> {
    depot: &'a mut Depot,
    /// What all names of this group's pieces begin with.
    stem: String,
    filling: BytesMut,
    pieces: Vec<Piece>,
    digest: blake3::Hasher,
    rows: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(depot: &'a mut Depot, stem: String) -> Self {
        let filling = BytesMut::with_capacity(1 << 20);
        Self { depot, stem, filling, pieces: Vec::new(), digest: blake3::Hasher::new(), rows: 0 }
    }

    pub(super) async fn row(&mut self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        // A row is at most a message long, which is far below 4 GiB.
        self.filling.put_u32_le(key.len() as u32);
        self.filling.put_u32_le(value.len() as u32);
        self.filling.put_slice(key);
        self.filling.put_slice(value);
        self.rows += 1;
        if self.filling.len() >= PIECE_BYTES { self.put().await } else { Ok(()) }
    }

    async fn put(&mut self) -> anyhow::Result<()> {
        let bytes = std::mem::take(&mut self.filling).freeze();
        self.digest.update(&bytes);
        let name = format!("{}-{}", self.stem, self.pieces.len());
        self.pieces.push(Piece { name: name.clone(), bytes: bytes.len() as u64, blake3: hex_of(&bytes) });
        self.depot.put(&name, bytes).await
    }

    /// The pieces, the number of rows and the digest over them.
    pub(super) async fn finish(mut self) -> anyhow::Result<(Vec<Piece>, u64, String)> {
        if !self.filling.is_empty() {
            self.put().await?;
        }
        Ok((self.pieces, self.rows, self.digest.finalize().to_hex().to_string()))
    }
}

/// The bytes of a piece, which are those that were put.
///
/// # Errors
/// When it is not there, or is damaged.
pub(super) async fn piece(depot: &mut Depot, piece: &Piece) -> anyhow::Result<Bytes> {
    let Some(bytes) = depot.get(&piece.name).await? else { bail!("{} is not there", piece.name) };
    let matches = bytes.len() as u64 == piece.bytes && hex_of(&bytes) == piece.blake3;
    ensure!(matches, "{} does not match its checksum", piece.name);
    Ok(bytes)
}

/// Takes the first row off `bytes`.
///
/// # Errors
/// When a row is cut off.
pub(super) fn split_row(bytes: &mut Bytes) -> Result<(Bytes, Bytes), &'static str> {
    const CUT: &str = "a row is cut off";
    let head: [u8; HEAD] = bytes.get(..HEAD).and_then(|head| head.try_into().ok()).ok_or(CUT)?;
    let [k0, k1, k2, k3, v0, v1, v2, v3] = head;
    let key = u32::from_le_bytes([k0, k1, k2, k3]) as usize;
    let value = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
    if bytes.len() < HEAD + key + value {
        return Err(CUT);
    }
    let mut row = bytes.split_to(HEAD + key + value).split_off(HEAD);
    let key = row.split_to(key);
    Ok((key, row))
}

/// Reads all pieces of a group and proves them.
///
/// # Errors
/// What does not add up.
pub(super) async fn prove(depot: &mut Depot, group: &GroupRows) -> anyhow::Result<()> {
    let (mut digest, mut rows) = (blake3::Hasher::new(), 0);
    for named in &group.pieces {
        let mut bytes = piece(depot, named).await?;
        digest.update(&bytes);
        while !bytes.is_empty() {
            split_row(&mut bytes).map_err(|error| anyhow::anyhow!("{}: {error}", named.name))?;
            rows += 1;
        }
    }
    ensure!(rows == group.rows, "{rows} rows, {} are named", group.rows);
    ensure!(digest.finalize().to_hex().as_str() == group.blake3, "the rows do not match their digest");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_come_back_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut depot = Depot::Directory(dir.path().to_owned());
        let mut writer = Writer::new(&mut depot, "7-1".into());
        let big = vec![9; PIECE_BYTES];
        let rows: [(&[u8], &[u8]); 3] = [(b"a", b""), (b"b", &big), (b"c", b"value")];
        for (key, value) in rows {
            writer.row(key, value).await.unwrap();
        }
        let (pieces, count, blake3) = writer.finish().await.unwrap();
        assert_eq!((pieces.len(), count), (2, 3));
        let group = GroupRows { group: 7, term: 1, index: 1, hlc: 1, rows: count, blake3, pieces };
        prove(&mut depot, &group).await.unwrap();

        let mut last = piece(&mut depot, &group.pieces[1]).await.unwrap();
        // These bytes lie in backups: they never change.
        assert_eq!(last, &b"\x01\0\0\0\x05\0\0\0cvalue"[..]);
        assert_eq!(split_row(&mut last).unwrap(), (Bytes::from("c"), Bytes::from("value")));
        assert!(last.is_empty());
        assert!(split_row(&mut Bytes::from_static(b"\x01\0\0\0\x05\0\0\0a")).is_err());

        let path = dir.path().join(&group.pieces[1].name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(prove(&mut depot, &group).await.is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(prove(&mut depot, &group).await.is_err());
    }
}
