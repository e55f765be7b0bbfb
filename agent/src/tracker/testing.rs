//! Help for tests of this module: loop devices, which need root.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::NamedTempFile;

/// A loop device over a sparse file of its own, detached on drop.
pub(crate) struct LoopDevice {
    path: PathBuf,
    backing: Option<NamedTempFile>,
}

impl LoopDevice {
    /// A loop device of `bytes` zeros; `None` without root.
    pub(crate) fn of_size(bytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: loop devices and BPF need root");
            return None;
        }
        let backing = NamedTempFile::new().unwrap();
        backing.as_file().set_len(bytes).unwrap();
        // Partitions are made by hand, with `addpart`: not every kernel reads partition tables.
        let mut disk = Self::attach(&["--partscan"], backing.path());
        disk.backing = Some(backing);
        Some(disk)
    }

    /// A loop device over the file at `path`. Needs root.
    pub(crate) fn over(path: &Path) -> Self {
        Self::attach(&[], path)
    }

    fn attach(options: &[&str], path: &Path) -> Self {
        let path = run("losetup", &[options, &["--find", "--show", path.to_str().unwrap()]].concat());
        Self { path: path.trim().into(), backing: None }
    }

    fn backing(&self) -> &NamedTempFile {
        self.backing.as_ref().expect("a device with a file of its own")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts another file of `bytes` zeros under the same device number.
    pub(crate) fn replace(&mut self, bytes: u64) {
        let other = NamedTempFile::new().unwrap();
        other.as_file().set_len(bytes).unwrap();
        self.detach();
        run("losetup", &[self.path.to_str().unwrap(), other.path().to_str().unwrap()]);
        self.backing = Some(other);
    }

    /// Makes the device larger.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.backing().as_file().set_len(bytes).unwrap();
        run("losetup", &["--set-capacity", self.path.to_str().unwrap()]);
    }

    /// Opens the device for unbuffered writing.
    pub(crate) fn open(&self) -> File {
        use std::os::unix::fs::OpenOptionsExt;
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        File::options().read(true).write(true).custom_flags(direct).open(&self.path).unwrap()
    }

    /// Writes `blocks` blocks of `fill` from block `first` on, straight to the device.
    pub(crate) fn write(&self, first: u64, blocks: usize, fill: u8) {
        let mut buf = engine::io::AlignedBuf::zeroed(blocks * 4096);
        buf.fill(fill);
        self.open().write_all_at(&buf, first * 4096).unwrap();
    }

    /// The whole content.
    pub(crate) fn content(&self) -> Vec<u8> {
        rustix::fs::fsync(File::open(&self.path).unwrap()).unwrap();
        fs::read(self.backing().path()).unwrap()
    }

    fn detach(&self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
        // The kernel detaches when the last user is gone; udev may still be looking.
        let name = self.path.file_name().unwrap();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        wait_for("the loop device is detached", || !backing.exists());
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
        } else {
            self.detach();
        }
    }
}

/// Runs a command, which must succeed, and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for a condition, and fails if it does not come.
pub(crate) fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
