//! ext4: made, checked and read without mounting, so without root, by the tools of e2fsprogs.

use std::{fs, path::Path};

use engine::service::shutdown::Shutdown;

use super::{error::LabError, tool::Tool};

/// The programs that this needs.
pub const TOOLS: [&str; 3] = ["mke2fs", "e2fsck", "debugfs"];

/// Makes a file system on `disk`, with the files of the folder `from` if there is one.
///
/// # Errors
/// What `mke2fs` says.
pub fn make(disk: &Path, from: Option<&Path>, stop: &Shutdown) -> Result<(), LabError> {
    // 4 KiB blocks and 256-byte inodes whatever the size; nothing is left to be initialised after mounting.
    let options =
        ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
    let mut tool = Tool::new("mke2fs").args(options);
    if let Some(from) = from {
        tool = tool.arg("-d").arg(from);
    }
    tool.arg(disk).until(stop).run().map(drop)
}

/// Replays the journal of a file system that was not unmounted, as mounting would. Changes `disk`.
///
/// # Errors
/// If that fails: what `e2fsck` says.
pub fn replay_journal(disk: &Path, stop: &Shutdown) -> Result<(), LabError> {
    let tool = Tool::new("e2fsck").args(["-p", "-E", "journal_only"]).arg(disk);
    // 1: something was replayed.
    tool.accept(&[0, 1]).until(stop).run().map(drop)
}

/// The full check, which changes nothing.
///
/// # Errors
/// If it finds anything: what `e2fsck` says.
pub fn check(disk: &Path, stop: &Shutdown) -> Result<(), LabError> {
    Tool::new("e2fsck").args(["-f", "-n"]).arg(disk).until(stop).run().map(drop)
}

/// Copies a file out, or a folder into the folder `to`.
///
/// # Errors
/// What `debugfs` says; it exits with 0 whatever happens, so what it prints is looked at.
pub fn extract(disk: &Path, path: &str, to: &Path, stop: &Shutdown) -> Result<(), LabError> {
    let command = if to.is_dir() { "rdump" } else { "dump" };
    let request = format!("{command} {path} {}", to.display());
    let done = Tool::new("debugfs").arg("-R").arg(&request).arg(disk).until(stop).run()?;
    let failed = |line: &&str| line.contains("not found") || line.contains("rror");
    match done.stderr.lines().find(failed) {
        Some(line) => Err(debugfs_error(&request, line)),
        None => Ok(()),
    }
}

/// Changes a file system that is not mounted, by commands of `debugfs`: one a line.
///
/// # Errors
/// What `debugfs` says.
pub fn change(disk: &Path, commands: &str, stop: &Shutdown) -> Result<(), LabError> {
    let script = tempfile::NamedTempFile::new().map_err(LabError::io("create", std::env::temp_dir()))?;
    fs::write(script.path(), commands).map_err(LabError::io("write", script.path()))?;
    let done = Tool::new("debugfs").args(["-w", "-f"]).arg(script.path()).arg(disk).until(stop).run()?;
    // The first line is its version.
    match done.stderr.lines().skip(1).find(|line| !line.trim().is_empty()) {
        Some(line) => Err(debugfs_error(commands, line)),
        None => Ok(()),
    }
}

/// The byte offsets of a file's 4 KiB blocks on the disk.
///
/// # Errors
/// What `debugfs` says, or if the file has holes.
pub fn blocks_of(disk: &Path, path: &str, stop: &Shutdown) -> Result<Vec<u64>, LabError> {
    let request = format!("blocks {path}");
    let done = Tool::new("debugfs").arg("-R").arg(&request).arg(disk).until(stop).run()?;
    let blocks: Vec<u64> = done.stdout.split_whitespace().filter_map(|block| block.parse().ok()).collect();
    if blocks.is_empty() || blocks.contains(&0) {
        return Err(debugfs_error(&request, &format!("{}{}", done.stdout, done.stderr)));
    }
    Ok(blocks.into_iter().map(|block| block * 4096).collect())
}

fn debugfs_error(request: &str, said: &str) -> LabError {
    LabError::Tool {
        command: format!("debugfs {request}"),
        status: "exit status: 0".into(),
        output: said.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;
    use crate::lab::tool;

    #[test]
    fn files_go_in_and_come_out() {
        if let Err(missing) = tool::require(&TOOLS) {
            println!("skipped: {missing}");
            return;
        }
        let stop = Shutdown::manual();
        let dir = tempfile::tempdir().unwrap();
        let [disk, from, to] = ["disk", "from", "to"].map(|name| dir.path().join(name));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir(&to).unwrap();
        let content: Vec<u8> = (0..40_960u32).map(|i| (i / 7) as u8).collect();
        fs::write(from.join("sub/file"), &content).unwrap();
        File::create_new(&disk).unwrap().set_len(16 << 20).unwrap();

        make(&disk, Some(&from), &stop).unwrap();
        let blocks = blocks_of(&disk, "/sub/file", &stop).unwrap();
        assert_eq!(blocks.len(), 10);
        let mut block = [0; 4096];
        File::open(&disk).unwrap().read_exact_at(&mut block, blocks[3]).unwrap();
        assert_eq!(block, content[3 * 4096..4 * 4096]);

        change(&disk, &format!("mkdir /new\nwrite {} /new/copy\n", from.join("sub/file").display()), &stop)
            .unwrap();
        check(&disk, &stop).unwrap();
        extract(&disk, "/new", &to, &stop).unwrap();
        assert_eq!(fs::read(to.join("new/copy")).unwrap(), content);
        extract(&disk, "/new/copy", &to.join("one"), &stop).unwrap();
        assert_eq!(fs::read(to.join("one")).unwrap(), content);

        assert!(extract(&disk, "/nothing", &to.join("x"), &stop).is_err());
        assert!(change(&disk, "rm /nothing\n", &stop).is_err());
        assert!(blocks_of(&disk, "/nothing", &stop).is_err());
        File::options().write(true).open(&disk).unwrap().write_all_at(&[0xff; 4096], 4 * 4096).unwrap();
        assert!(check(&disk, &stop).is_err());
    }
}
