//! What the daemon asks of the machine: wall clock, monotonic time, randomness and the disk under shard files.
//!
//! Nothing else in `node` reads a clock, draws randomness or opens a shard file, so a simulation replaces all of them
//! by building another [`Env`]. The kept engines (fjall, raft-engine, sled) do their own I/O and are outside of this.

use std::fmt;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::TryRngCore;
use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::Errno;

/// Offset, length and memory alignment of a direct write, bytes. No device in use asks for more.
pub(crate) const DIRECT_ALIGN: usize = 4096;

/// Wall and monotonic time.
///
/// Law: `monotonic` never goes back within a process; `now_ms` may.
pub(crate) trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since the Unix epoch; 0 when the clock is set before it.
    fn now_ms(&self) -> u64;
    /// Time since an origin fixed for the life of the process.
    fn monotonic(&self) -> Duration;
}

/// A source of unpredictable bytes.
pub(crate) trait Random: Send + Sync + fmt::Debug {
    /// Fills all of `out`.
    fn fill(&self, out: &mut [u8]);
}

/// The file system under one shard store.
///
/// To ensure correctness: what `sync` of a file and `sync_dir` of its directory returned `Ok` for survives a power cut;
/// what they did not may survive in part, in any order of blocks of [`DIRECT_ALIGN`] bytes.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// Creates `dir` and its parents; an existing directory is a success.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Names of the files in `dir`, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist, for reading and writing.
    fn create(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file that must exist, for reading and writing.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;
    /// Replaces `path` whole by `content`: after a crash it holds the old content or the new. Durable on return.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// The whole of a small file; `NotFound` when there is none.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Removes a file; `NotFound` when there is none.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The exclusive lock at `path` until the value is dropped; `None` when another holder has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>>;
    /// Size and free bytes of the file system that holds `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// Changes when the machine starts anew, so that a killed process is told from a power cut.
    fn boot_id(&self) -> io::Result<String>;
}

/// A held lock; dropping it releases it.
pub(crate) trait DiskLock: Send + Sync + fmt::Debug {}

/// How a file's bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Through the page cache.
    Buffered,
    /// Past the page cache: buffers, offsets and lengths of writes are multiples of [`DIRECT_ALIGN`].
    Direct,
}

/// Size of a file system, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Space {
    /// What could be stored were it empty.
    pub(crate) capacity: u64,
    /// What can still be stored.
    pub(crate) free: u64,
}

/// An open shard file.
pub(crate) trait DiskFile: Send + Sync + fmt::Debug {
    /// Writes all of `data` at `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Appends up to `len` bytes from `offset` to `out`; fewer only at the end of the file. Returns how many.
    fn read_at(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<usize>;
    /// The same without waiting for the device: `None` when the bytes are not all in memory.
    fn read_cached(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<Option<usize>>;
    /// Makes the data and what is needed to read it durable. Never repeated after a failure: the kernel may have
    /// dropped the very pages that failed.
    fn sync(&self) -> io::Result<()>;
    /// After this, reads of the range ask the device for what was synced: pages that a failed sync left behind as if they
    /// were clean are not believed. All of the file: from 0 to the greatest number.
    fn drop_cache(&self, range: Range<u64>) -> io::Result<()>;
    /// Length, bytes.
    fn len(&self) -> io::Result<u64>;
    /// Bytes of disk that it takes: less than its length where holes were punched.
    fn allocated(&self) -> io::Result<u64>;
    /// Cuts or extends to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Frees the whole blocks inside a range, which then reads as zeros; the length stays.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// The daemon's view of the machine. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Env {
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    disk: Arc<dyn Disk>,
}

impl Env {
    /// The machine itself.
    pub(crate) fn real() -> Self {
        Self::new(
            Arc::new(MachineClock { origin: Instant::now() }),
            Arc::new(MachineRandom),
            Arc::new(MachineDisk),
        )
    }

    /// From its parts.
    pub(crate) fn new(clock: Arc<dyn Clock>, random: Arc<dyn Random>, disk: Arc<dyn Disk>) -> Self {
        Self { clock, random, disk }
    }

    /// Milliseconds since the Unix epoch; 0 when the clock is set before it.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Time since an origin fixed for the life of the process; never goes back.
    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Fills all of `out` with unpredictable bytes.
    pub(crate) fn fill_random(&self, out: &mut [u8]) {
        self.random.fill(out);
    }

    /// The disk under shard files.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }
}

#[derive(Debug)]
struct MachineClock {
    origin: Instant,
}

impl Clock for MachineClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

#[derive(Debug)]
struct MachineRandom;

impl Random for MachineRandom {
    fn fill(&self, out: &mut [u8]) {
        rand::rngs::OsRng
            .try_fill_bytes(out)
            .expect("Linux has getrandom, which cannot fail once the system is up");
    }
}

#[derive(Debug)]
struct MachineDisk;

impl Disk for MachineDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        open_file(path, access, true)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        open_file(path, access, false)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let beside = path.with_extension("new");
        let file = File::create(&beside)?;
        file.write_all_at(content, 0)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new("/")))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(MachineLock { _file: file }))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(dir)?;
        // As `df` counts: what root keeps for itself is neither used nor free.
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        Ok(Space {
            capacity: used.saturating_add(stat.f_bavail).saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }
}

/// The kernel drops the lock with the last descriptor, however the process ends.
#[derive(Debug)]
struct MachineLock {
    _file: File,
}

impl DiskLock for MachineLock {}

fn open_file(path: &Path, access: Access, create: bool) -> io::Result<Arc<dyn DiskFile>> {
    let flags = match access {
        Access::Buffered => 0,
        Access::Direct => i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0),
    };
    let file = File::options().read(true).write(true).create_new(create).custom_flags(flags).open(path)?;
    Ok(Arc::new(MachineFile { file }))
}

#[derive(Debug)]
struct MachineFile {
    file: File,
}

impl DiskFile for MachineFile {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn read_at(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < len {
            match self.file_read(out, len - done, offset + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    fn read_cached(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<Option<usize>> {
        let start = out.len();
        out.resize(start + len, 0);
        let mut slices = [io::IoSliceMut::new(&mut out[start..])];
        let outcome =
            rustix::io::preadv2(&self.file, &mut slices, offset, rustix::io::ReadWriteFlags::NOWAIT);
        match outcome {
            Ok(count) if count == len => return Ok(Some(count)),
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
            Err(error) => {
                out.truncate(start);
                return Err(error.into());
            }
        }
        out.truncate(start);
        Ok(None)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn drop_cache(&self, range: Range<u64>) -> io::Result<()> {
        // Pages that are only partly in the range would stay.
        let align = DIRECT_ALIGN as u64;
        let start = range.start / align * align;
        let length = range
            .end
            .checked_next_multiple_of(align)
            .and_then(|end| NonZeroU64::new(end.saturating_sub(start)));
        Ok(rustix::fs::fadvise(&self.file, start, length, Advice::DontNeed)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        // In units of 512 bytes, whatever the file system's blocks are.
        Ok(self.file.metadata()?.blocks() * 512)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        )?)
    }
}

impl MachineFile {
    /// One read of at most `len` bytes into fresh capacity of `out`, which is never zeroed first.
    fn file_read(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<usize> {
        let start = out.len();
        out.reserve_exact(len);
        loop {
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(out), offset) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(count) => {
                    // A vector that had more room than asked for may have been filled beyond `len`.
                    let count = count.min(len);
                    out.truncate(start + count);
                    return Ok(count);
                }
            }
        }
    }
}
