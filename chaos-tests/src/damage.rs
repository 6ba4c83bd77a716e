//! Damage done to files behind the back of the processes that have them open.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Flips one bit wherever `needle` lies in the files below `dir`; how many places there were.
///
/// The code is systematic: a piece of an object lies in a segment as it is.
pub fn flip(dir: &Path, needle: &[u8]) -> usize {
    let mut flipped = 0;
    for path in files_below(dir) {
        let content = std::fs::read(&path).expect("a file of the zone");
        let Some(at) = content.windows(needle.len()).position(|window| window == needle) else { continue };
        let file = File::options().write(true).open(&path).expect("a file of the zone");
        file.write_all_at(&[content[at] ^ 1], at as u64).expect("a file of the zone");
        file.sync_all().expect("a file of the zone");
        flipped += 1;
    }
    flipped
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a file of the zone");
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() && entry.metadata().expect("a file of the zone").len() > 0 {
                found.push(entry.path());
            }
        }
    }
    found
}
