//! Small file systems that a test owns: to fill them for real. Only root may; a test that cannot says so and ends.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const JUNK: &str = "junk";

/// A tmpfs that is there until it is dropped.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
}

impl Mount {
    /// Mounts `mebibytes` of memory on an existing directory; `None`, said on standard error, where that is not allowed.
    pub fn tmpfs(dir: &Path, mebibytes: u64) -> Option<Self> {
        let mounted = run(&["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"], dir);
        if !mounted {
            eprintln!("skipped: this test needs to mount a tmpfs, and may not");
        }
        mounted.then(|| Self { dir: dir.to_owned() })
    }

    /// Leaves room for nothing more.
    pub fn fill(&self) {
        let mut file = File::create(self.dir.join(JUNK)).expect("a file to fill it with");
        for bytes in [1 << 20, 1 << 12] {
            while file.write_all(&vec![7; bytes]).is_ok() {}
        }
    }

    /// Takes back what `fill` did.
    pub fn make_room(&self) {
        std::fs::remove_file(self.dir.join(JUNK)).expect("it was filled");
    }

    /// Bytes in use and bytes free.
    pub fn space(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(&self.dir).expect("it is mounted");
        ((stat.f_blocks - stat.f_bfree) * stat.f_frsize, stat.f_bavail * stat.f_frsize)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever still has files open keeps them until then.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

fn run(options: &[&str], dir: &Path) -> bool {
    let status = Command::new("mount").args(options).arg(dir).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
