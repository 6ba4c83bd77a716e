//! A disk in memory that loses power, dies in the middle of anything, fails syncs and fills up, for tests.
//!
//! A power cut keeps what was synced; of the rest each 4 KiB block survives by the toss of a coin, and the file's
//! length is what the survivors make it. Files whose directory was not synced may be gone, and removed ones be
//! back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::env::{Access, DIRECT_ALIGN, Disk, DiskFile, DiskLock, Space};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The process dies: this operation does not happen, nor any after it. Of a write, a part may happen.
    Die,
    /// The operation fails with this OS error; a write may have happened in part.
    Fail(i32),
}

/// Which operations count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    Any,
    Write,
    Sync,
}

#[derive(Debug, Clone)]
struct SimFile {
    durable: Vec<u8>,
    current: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// Blocks that a failed sync gave up: in memory, taken for clean, not on the medium.
    given_up: BTreeSet<usize>,
    named: bool,
}

impl SimFile {
    fn with_content(content: &[u8], named: bool) -> Self {
        let (dirty, given_up) = (BTreeSet::new(), BTreeSet::new());
        Self { durable: content.to_vec(), current: content.to_vec(), dirty, given_up, named }
    }

    /// Replaces blocks of `into` by those of `from`, as far as that goes; zeros beyond.
    fn copy_blocks(from: &[u8], into: &mut [u8], blocks: &BTreeSet<usize>) {
        for block in blocks {
            let start = (block * DIRECT_ALIGN).min(into.len());
            let end = (start + DIRECT_ALIGN).min(into.len());
            into[start..end].fill(0);
            let end = end.min(from.len()).max(start.min(from.len()));
            let start = start.min(end);
            into[start..end].copy_from_slice(&from[start..end]);
        }
    }
}

#[derive(Debug)]
struct State {
    files: BTreeMap<PathBuf, SimFile>,
    /// Removed, and their directory not synced since.
    removed: BTreeMap<PathBuf, SimFile>,
    locks: BTreeSet<PathBuf>,
    boot: u64,
    /// Counts lives of the process: handles of an earlier one are dead.
    life: u64,
    dead: bool,
    plan: Option<(On, u64, Trouble)>,
    seen: u64,
    syncs: u64,
    reads: u64,
    punched: u64,
    space: Space,
}

/// See the module. Clones share the disk.
#[derive(Debug, Clone)]
pub(super) struct SimDisk(Arc<Mutex<State>>, Arc<Mutex<()>>, Arc<Mutex<()>>);

impl SimDisk {
    pub(super) fn new() -> Self {
        Self(
            Arc::new(Mutex::new(State {
                files: BTreeMap::new(),
                removed: BTreeMap::new(),
                locks: BTreeSet::new(),
                boot: 1,
                life: 1,
                dead: false,
                plan: None,
                seen: 0,
                syncs: 0,
                reads: 0,
                punched: 0,
                space: Space { capacity: 1 << 40, free: 1 << 40 },
            })),
            Arc::default(),
            Arc::default(),
        )
    }

    /// Until this is dropped, every sync waits.
    pub(super) fn hold_syncs(&self) -> MutexGuard<'_, ()> {
        self.1.lock()
    }

    /// Until this is dropped, every read waits.
    pub(super) fn hold_reads(&self) -> MutexGuard<'_, ()> {
        self.2.lock()
    }

    /// Reads that were begun.
    pub(super) fn reads(&self) -> u64 {
        self.0.lock().reads
    }

    /// `trouble` befalls the operation after `skip` more of the kind.
    pub(super) fn plan(&self, on: On, skip: u64, trouble: Trouble) {
        let mut state = self.0.lock();
        state.plan = Some((on, skip, trouble));
        state.seen = 0;
    }

    /// Whether the process died as planned.
    pub(super) fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// The process is killed and the next one starts; the machine stays up.
    pub(super) fn kill(&self) {
        let mut state = self.0.lock();
        state.life += 1;
        state.dead = false;
        state.plan = None;
        state.locks.clear();
    }

    /// The power goes and comes back.
    pub(super) fn power_cut(&self, seed: u64) {
        self.kill();
        let mut state = self.0.lock();
        state.boot += 1;
        let mut coin = StdRng::seed_from_u64(seed);
        state.files.retain(|_, file| file.named || coin.random_bool(0.5));
        for (path, file) in std::mem::take(&mut state.removed) {
            if coin.random_bool(0.5) {
                state.files.entry(path).or_insert(file);
            }
        }
        for file in state.files.values_mut() {
            let mut content = file.durable.clone();
            for block in &file.dirty {
                if coin.random_bool(0.5) {
                    continue;
                }
                let start = block * DIRECT_ALIGN;
                let end = (start + DIRECT_ALIGN).min(file.current.len());
                if start < end {
                    content.resize(content.len().max(end), 0);
                    content[start..end].copy_from_slice(&file.current[start..end]);
                }
            }
            if file.current.len() < file.durable.len() && coin.random_bool(0.5) {
                content.truncate(file.current.len());
            }
            *file = SimFile::with_content(&content, true);
        }
    }

    pub(super) fn set_free(&self, free: u64) {
        self.0.lock().space = Space { capacity: 1000, free };
    }

    pub(super) fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    pub(super) fn punched(&self) -> u64 {
        self.0.lock().punched
    }

    /// Paths of all files, in order.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().files.keys().cloned().collect()
    }

    /// Changes a file's bytes as a failing medium does.
    pub(super) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let file = state.files.get_mut(path).expect("the file is there");
        change(&mut file.current);
        file.durable.clone_from(&file.current);
        file.dirty.clear();
    }

    fn open_file(&self, path: &Path) -> Arc<dyn DiskFile> {
        Arc::new(Handle { disk: self.clone(), path: path.to_owned(), life: self.0.lock().life })
    }
}

impl State {
    /// Counts an operation; the error that befalls it, if one does.
    fn step(&mut self, on: On) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::from_raw_os_error(5));
        }
        let Some((planned, skip, trouble)) = self.plan else { return Ok(()) };
        if planned != On::Any && planned != on {
            return Ok(());
        }
        self.seen += 1;
        if self.seen <= skip {
            return Ok(());
        }
        match trouble {
            Trouble::Die => {
                self.dead = true;
                Err(io::Error::from_raw_os_error(5))
            }
            Trouble::Fail(code) => {
                self.plan = None;
                Err(io::Error::from_raw_os_error(code))
            }
        }
    }

    fn file(&mut self, path: &Path) -> io::Result<&mut SimFile> {
        self.files.get_mut(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

#[derive(Debug)]
struct Held {
    disk: SimDisk,
    path: PathBuf,
    life: u64,
}

impl DiskLock for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let inside = state.files.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create(&self, path: &Path, _: Access) -> io::Result<Arc<dyn DiskFile>> {
        {
            let mut state = self.0.lock();
            state.step(On::Any)?;
            if state.files.insert(path.to_owned(), SimFile::with_content(&[], false)).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
        }
        Ok(self.open_file(path))
    }

    fn open(&self, path: &Path, _: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.0.lock().file(path)?;
        Ok(self.open_file(path))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step(On::Any)?;
        state.files.insert(path.to_owned(), SimFile::with_content(content, true));
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().file(path)?.current.clone())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step(On::Any)?;
        let file = state.files.remove(path).ok_or(io::ErrorKind::NotFound)?;
        if file.named {
            state.removed.insert(path.to_owned(), file);
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step(On::Sync)?;
        let inside = state.files.iter_mut().filter(|(path, _)| path.parent() == Some(dir));
        inside.for_each(|(_, file)| file.named = true);
        state.removed.retain(|path, _| path.parent() != Some(dir));
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let mut state = self.0.lock();
        if !state.locks.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(Held { disk: self.clone(), path: path.to_owned(), life: state.life })))
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(self.0.lock().space)
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(self.0.lock().boot.to_string())
    }
}

#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    path: PathBuf,
    life: u64,
}

impl Handle {
    fn with<T>(
        &self,
        on: Option<On>,
        act: impl FnOnce(&mut SimFile, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.life != self.life {
            return Err(io::Error::from_raw_os_error(5));
        }
        let was_dead = state.dead;
        let trouble = on.map_or(Ok(()), |on| state.step(on));
        let died = state.dead;
        let dies = died && !was_dead;
        let file = state.file(&self.path)?;
        match trouble {
            Ok(()) => act(file, true),
            // A write that fails, or during which the process dies, may have happened in part.
            Err(error) => {
                if on == Some(On::Write) && (dies || !died) || on == Some(On::Sync) && !died {
                    act(file, false)?;
                }
                Err(error)
            }
        }
    }
}

impl DiskFile for Handle {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("simulated files are small");
        assert!(
            offset.is_multiple_of(DIRECT_ALIGN) && data.len().is_multiple_of(DIRECT_ALIGN),
            "writes are aligned"
        );
        assert_eq!(data.as_ptr().align_offset(DIRECT_ALIGN), 0, "buffers are aligned");
        self.with(Some(On::Write), |file, whole| {
            let data = if whole { data } else { &data[..data.len() / 2] };
            let end = offset + data.len();
            if file.current.len() < end {
                file.current.resize(end, 0);
            }
            file.current[offset..end].copy_from_slice(data);
            file.dirty.extend(offset / DIRECT_ALIGN..end.div_ceil(DIRECT_ALIGN));
            Ok(())
        })
    }

    fn read_at(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<usize> {
        self.disk.0.lock().reads += 1;
        let _turn = self.disk.2.lock();
        self.with(None, |file, _| {
            let start = (offset as usize).min(file.current.len());
            let end = (start + len).min(file.current.len());
            out.extend_from_slice(&file.current[start..end]);
            Ok(end - start)
        })
    }

    fn read_cached(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<Option<usize>> {
        // Half of everything is in memory.
        if offset.is_multiple_of(16) { Ok(None) } else { self.read_at(out, len, offset).map(Some) }
    }

    fn sync(&self) -> io::Result<()> {
        let _turn = self.disk.1.lock();
        self.with(Some(On::Sync), |file, whole| {
            if !whole {
                file.given_up.append(&mut file.dirty);
                return Ok(());
            }
            let before = std::mem::replace(&mut file.durable, file.current.clone());
            SimFile::copy_blocks(&before, &mut file.durable, &file.given_up);
            file.dirty.clear();
            Ok(())
        })?;
        self.disk.0.lock().syncs += 1;
        Ok(())
    }

    fn drop_cache(&self, range: std::ops::Range<u64>) -> io::Result<()> {
        let align = DIRECT_ALIGN as u64;
        let covers = |block: &usize| {
            let start = *block as u64 * align;
            start < range.end && start + align > range.start
        };
        self.with(None, |file, _| {
            let (dropped, kept) = std::mem::take(&mut file.given_up).into_iter().partition(covers);
            file.given_up = kept;
            SimFile::copy_blocks(&file.durable, &mut file.current, &dropped);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(None, |file, _| Ok(file.current.len() as u64))
    }

    fn allocated(&self) -> io::Result<u64> {
        let is_hole = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
        self.with(None, |file, _| {
            let taken = file.current.chunks(DIRECT_ALIGN).filter(|block| !is_hole(block)).count();
            Ok((taken * DIRECT_ALIGN) as u64)
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(Some(On::Any), |file, _| {
            file.current.resize(len as usize, 0);
            Ok(())
        })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (offset as usize, len as usize);
        assert!(
            offset.is_multiple_of(DIRECT_ALIGN) && len.is_multiple_of(DIRECT_ALIGN),
            "whole blocks are freed"
        );
        self.with(Some(On::Any), |file, _| {
            file.current[offset..offset + len].fill(0);
            file.dirty.extend(offset / DIRECT_ALIGN..(offset + len) / DIRECT_ALIGN);
            Ok(())
        })?;
        self.disk.0.lock().punched += len as u64;
        Ok(())
    }
}
