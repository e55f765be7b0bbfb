//! External programs: found also where only root's PATH looks, stopped on a signal, and heard out when they fail.
//! They are run to their end, or started to run beside us.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use engine::service::shutdown::Shutdown;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::{error::LabError, process::tie, wait::check};

/// Where `mkfs` and its like are; in an ordinary user's PATH on some distributions only.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Which package a program is in, by the name that most distributions give it.
const PACKAGES: [(&str, &str); 19] = [
    ("mke2fs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("losetup", "util-linux (or `mount` on Debian)"),
    ("mount", "util-linux (or `mount` on Debian)"),
    ("umount", "util-linux (or `mount` on Debian)"),
    ("fsfreeze", "util-linux"),
    ("cargo", "rust (https://rustup.rs)"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("nbdcopy", "libnbd-bin"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("debootstrap", "debootstrap"),
    ("extlinux", "extlinux"),
];

/// Time between two looks at a running program.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Bytes of a failed program's output that are told.
const TOLD: usize = 2000;

/// Where `program` is.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Checks that programs are installed.
///
/// # Errors
/// [`LabError::MissingTool`], naming all that are missing.
pub fn require(programs: &[&str]) -> Result<(), LabError> {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    if missing.is_empty() { Ok(()) } else { Err(not_found(&missing)) }
}

fn not_found(programs: &[&str]) -> LabError {
    let mut packages: Vec<&str> = programs.iter().map(|program| package_of(program)).collect();
    packages.dedup();
    LabError::MissingTool { program: programs.join(", "), package: packages.join(", ") }
}

/// The package that a program is in, by the name that most distributions give it.
#[must_use]
pub fn package_of(program: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package)
}

/// A program about to run.
#[must_use]
pub struct Tool {
    program: String,
    command: Command,
    accepted: &'static [i32],
    stop: Option<Shutdown>,
    stdin: Stdio,
    stdout: Option<Stdio>,
}

/// A program that ran.
#[derive(Debug)]
pub struct Done {
    /// Its exit status.
    pub code: i32,
    /// What it printed to stdout.
    pub stdout: String,
    /// What it printed to stderr.
    pub stderr: String,
}

impl Tool {
    /// Messages are in English, whatever the locale.
    pub fn new(program: &str) -> Self {
        let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
        command.env("LC_ALL", "C");
        Self {
            program: program.into(),
            command,
            accepted: &[0],
            stop: None,
            stdin: Stdio::null(),
            stdout: None,
        }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Exit statuses that are no failure, instead of 0.
    pub fn accept(mut self, codes: &'static [i32]) -> Self {
        self.accepted = codes;
        self
    }

    /// Ended by a signal to us. Without this, the program runs to its end.
    pub fn until(mut self, stop: &Shutdown) -> Self {
        self.stop = Some(stop.clone());
        self
    }

    /// What it reads, instead of nothing.
    pub fn stdin(mut self, from: impl Into<Stdio>) -> Self {
        self.stdin = from.into();
        self
    }

    /// Where what it prints to stdout goes, instead of to us.
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.stdout = Some(to.into());
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`LabError::MissingTool`], [`LabError::Tool`] with what it printed, [`LabError::Interrupted`].
    pub fn run(mut self) -> Result<Done, LabError> {
        let stop = self.stop.take();
        self.start()?.wait(stop.as_ref())
    }

    /// Starts it to run beside us. It ends with what is returned, and at the latest with the thread that called this.
    ///
    /// # Errors
    /// [`LabError::MissingTool`], and what the system refuses.
    pub fn start(mut self) -> Result<Running, LabError> {
        let output = || tempfile::tempfile().map_err(LabError::io("create", env::temp_dir()));
        let (stdout, stderr) = (output()?, output()?);
        let writer = |file: &File| file.try_clone().map(Stdio::from);
        let failed = |source| LabError::Io { doing: "run", path: self.program.clone().into(), source };
        let to = self.stdout.map_or_else(|| writer(&stdout), Ok).map_err(failed)?;
        self.command.stdin(self.stdin).stdout(to).stderr(writer(&stderr).map_err(failed)?);
        let child = match tie(&mut self.command).spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(not_found(&[self.program.as_str()]));
            }
            spawned => spawned.map_err(failed)?,
        };
        let command = display(&self.program, &self.command);
        Ok(Running { command, child, accepted: self.accepted, stdout, stderr })
    }
}

/// A program that runs beside us. Dropping it kills it.
pub struct Running {
    command: String,
    child: Child,
    accepted: &'static [i32],
    stdout: File,
    stderr: File,
}

impl Running {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended. What `/proc` tells of it can be read all the same, until [`Self::wait`].
    ///
    /// # Errors
    /// What the system refuses.
    pub fn has_ended(&self) -> Result<bool, LabError> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = waitid(WaitId::Pid(Pid::from_child(&self.child)), options);
        ended.map(|ended| ended.is_some()).map_err(|error| self.failed(error.into()))
    }

    /// Waits for its end, until `stop` says otherwise.
    ///
    /// # Errors
    /// [`LabError::Tool`] with what it printed, [`LabError::Interrupted`].
    pub fn wait(mut self, stop: Option<&Shutdown>) -> Result<Done, LabError> {
        let status = self.status(stop)?;
        let (stdout, stderr) = (text(&mut self.stdout), text(&mut self.stderr));
        match status.code() {
            Some(code) if self.accepted.contains(&code) => Ok(Done { code, stdout, stderr }),
            _ => Err(LabError::Tool {
                command: self.command.clone(),
                status: status.to_string(),
                output: tail(&format!("{stdout}{stderr}")),
            }),
        }
    }

    fn status(&mut self, stop: Option<&Shutdown>) -> Result<ExitStatus, LabError> {
        let Some(stop) = stop else { return self.child.wait().map_err(|error| self.failed(error)) };
        loop {
            if let Some(status) = self.child.try_wait().map_err(|error| self.failed(error))? {
                return Ok(status);
            }
            check(stop)?;
            thread::sleep(LOOK_EVERY);
        }
    }

    fn failed(&self, source: std::io::Error) -> LabError {
        LabError::Io { doing: "wait for", path: self.command.clone().into(), source }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and been waited for: then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // Only for messages and for output that was just written here.
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(text: &str) -> String {
    let text = text.trim();
    let start = text.len().saturating_sub(TOLD);
    let start = (start..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(start);
    text[start..].into()
}

fn display(program: &str, command: &Command) -> String {
    let args = command.get_args().map(OsStr::to_string_lossy);
    args.fold(program.to_owned(), |line, arg| format!("{line} {arg}"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::lab::wait::soon;

    #[test]
    fn a_failure_tells_command_status_and_output() {
        let error =
            Tool::new("sh").args(["-c", "echo seen; echo why >&2; exit 3"]).run().unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("exit status: 3"), "{error}");
        assert!(error.contains("seen") && error.contains("why"), "{error}");
        let done = Tool::new("sh").args(["-c", "echo x; exit 3"]).accept(&[0, 3]).run().unwrap();
        assert_eq!((done.code, done.stdout.as_str()), (3, "x\n"));
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        assert!(require(&["sh", "ls"]).is_ok());
        let error = require(&["sh", "no-such-tool"]).unwrap_err().to_string();
        assert!(error.contains("no-such-tool"), "{error}");
        assert!(not_found(&["mke2fs", "e2fsck"]).to_string().ends_with("the package e2fsprogs"));
        assert!(matches!(Tool::new("no-such-tool").run(), Err(LabError::MissingTool { .. })));
    }

    #[test]
    fn what_runs_beside_us_is_read_after_its_end_and_killed_when_dropped() {
        let (reader, writer) = std::io::pipe().unwrap();
        let writing = Tool::new("sh").args(["-c", "echo piped"]).stdout(writer).start().unwrap();
        let reading = Tool::new("cat").stdin(reader).start().unwrap();
        let stat = format!("/proc/{}/stat", reading.pid());
        soon("both end", || writing.has_ended().unwrap() && reading.has_ended().unwrap());
        assert!(std::fs::read_to_string(&stat).unwrap().contains(" Z "), "its figures are still there");
        assert_eq!(reading.wait(None).unwrap().stdout, "piped\n");

        let sleeping = Tool::new("sleep").arg("600").start().unwrap();
        let process = PathBuf::from(format!("/proc/{}", sleeping.pid()));
        assert!(process.exists() && !sleeping.has_ended().unwrap());
        drop(sleeping);
        assert!(!process.exists());
    }

    #[test]
    fn a_signal_ends_it() {
        let stop = Shutdown::manual();
        stop.request();
        let began = Instant::now();
        let error = Tool::new("sleep").arg("600").until(&stop).run().unwrap_err();
        assert!(matches!(error, LabError::Interrupted) && began.elapsed() < Duration::from_secs(60));
    }
}
