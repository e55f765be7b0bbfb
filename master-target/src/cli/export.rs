//! `export`: a disk as it was at a point, to a new file or to standard output.
//!
//! The file is made here, with the rights of whoever runs the command, and handed to the service if that runs. It is
//! removed again unless everything worked out; only `kill -9` leaves a part of it.

use std::{
    fs::{self, File},
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use engine::service::{
    exit::{Code, WithCode},
    quantity::Size,
    shutdown::Shutdown,
};
use master_target::{
    config::Config,
    export::{Exported, Format, Plan},
    restore::Select,
};
use serde_json::json;
use tokio::sync::oneshot;

use super::desk::Desk;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM.
    vm: String,
    /// `latest`, `latest-application-consistent`, `before-failback`, a point's id, or a time: the newest point taken at or
    /// before it.
    #[arg(long, default_value = "latest")]
    point: String,
    /// Which disk; may be left out if there is only one.
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    /// What the file is: a VMDK for OVF packages, compressed and without zeros, or the disk's bytes, with holes for zeros.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The file, which must not exist; `-` is standard output, which is not read again.
    out: PathBuf,
}

/// `export`.
pub(crate) fn run(config: &Config, args: Args, json: bool) -> anyhow::Result<()> {
    let _: Select = args.point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
    if args.out == Path::new("-") {
        let stdout = standard_output(json).with_code(Code::Usage)?;
        let exported = export(config, &args, true, &stdout, json)?;
        eprintln!("{}", said(&args, &exported));
        return Ok(());
    }
    let new = NewFile::create(&args.out).with_code(Code::Refused)?;
    let exported = until_interrupted({
        let (config, file) = (config.clone(), new.file.try_clone()?);
        move || export(&config, &args, false, &file, json).map(|exported| (args, exported))
    });
    let (args, exported) = exported?;
    new.keep()?;
    if json {
        println!("{}", json!({ "ok": true, "vm": args.vm, "file": args.out, "exported": exported }));
    } else {
        println!("{}", said(&args, &exported));
    }
    Ok(())
}

fn export(config: &Config, args: &Args, stream: bool, file: &File, json: bool) -> anyhow::Result<Exported> {
    let plan = Plan { disk: args.disk.clone(), format: args.format, stream };
    Desk::open(config, json)?.export(&args.vm, &args.point, &plan, file)
}

/// Standard output, if it can take a disk.
fn standard_output(json: bool) -> anyhow::Result<File> {
    let stdout = io::stdout();
    anyhow::ensure!(
        !json,
        "standard output cannot take both the disk and JSON: name a file, or leave out --json"
    );
    anyhow::ensure!(!stdout.is_terminal(), "standard output is a terminal: redirect it, or name a file");
    Ok(stdout.as_fd().try_clone_to_owned()?.into())
}

/// Does `work` on a thread of its own until a signal comes; then the process is to end.
fn until_interrupted<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let stop = Shutdown::on_signals()?;
        let (done, result) = oneshot::channel();
        // Nobody waits for it any more after a signal.
        std::thread::spawn(move || drop(done.send(work())));
        tokio::select! {
            result = result => result?,
            () = stop.requested() => {
                Err(anyhow::anyhow!("interrupted; the file is removed")).with_code(Code::Interrupted)
            }
        }
    })
}

/// A file that is removed when dropped, unless it is kept.
struct NewFile {
    file: File,
    path: Option<PathBuf>,
}

impl NewFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                anyhow::anyhow!("{} exists, and is not overwritten: choose another name", path.display())
            }
            _ => anyhow::anyhow!("cannot create {}: {error}", path.display()),
        })?;
        Ok(Self { file, path: Some(path.to_owned()) })
    }

    /// Keeps it, for good.
    fn keep(mut self) -> anyhow::Result<()> {
        let Some(path) = self.path.take() else { return Ok(()) };
        self.file.sync_all()?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(File::open(dir)?.sync_all()?)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed stays, and is seen.
            let _ = fs::remove_file(path);
        }
    }
}

fn said(args: &Args, exported: &Exported) -> String {
    let Exported { point, taken_at, disk, written } = exported;
    let place =
        if args.out == Path::new("-") { "standard output".into() } else { args.out.display().to_string() };
    let checked = if written.checked { "read again and found equal" } else { "not read again" };
    format!(
        "Disk {disk} of {} as it was at {taken_at} ({point}) is in {place}: {} with {} of data, {} in the file, {checked}.\n\
         root {}",
        args.vm,
        Size(written.capacity_bytes),
        Size(written.data_bytes),
        Size(written.file_bytes),
        written.root
    )
}
