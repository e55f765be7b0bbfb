//! Finding the services' binaries: beside the running one. Under cargo they are built first, so that one command on
//! a fresh clone is enough.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::error::LabError;

/// The packages of the services; their binaries are called the same.
const SERVICES: [&str; 3] = ["homeward-agent", "homeward-process-server", "homeward-master-target"];

/// The folder that has the services' binaries: that of the running program. Run by cargo, it builds them first,
/// `release` or not.
///
/// # Errors
/// If they do not build, or one is missing.
pub fn build_services(release: bool) -> Result<PathBuf, LabError> {
    let this = env::current_exe().map_err(LabError::io("find", "our own program"))?;
    let dir = binaries_beside(&this);
    if let Some(cargo) = env::var_os("CARGO") {
        run_cargo(Command::new(cargo).args(arguments(release)))?;
    }
    match SERVICES.iter().map(|name| dir.join(name)).find(|file| !file.is_file()) {
        None => Ok(dir),
        Some(missing) => Err(LabError::Io {
            doing: "find",
            path: missing,
            source: io::Error::new(io::ErrorKind::NotFound, "the services' programs belong beside this one"),
        }),
    }
}

/// Whether the running program was built with optimisations, as its services should then be.
#[must_use]
pub const fn is_release() -> bool {
    !cfg!(debug_assertions)
}

/// Tests and benches are in a folder below.
fn binaries_beside(program: &Path) -> PathBuf {
    let dir = program.parent().unwrap_or(Path::new("/"));
    if dir.ends_with("deps") { dir.parent().unwrap_or(dir).into() } else { dir.into() }
}

fn arguments(release: bool) -> Vec<&'static str> {
    let mut arguments = vec!["build", "--quiet"];
    arguments.extend(release.then_some("--release"));
    arguments.extend(SERVICES.iter().flat_map(|name| ["--package", name]));
    arguments
}

/// What cargo says goes to stderr, as it comes: it may take minutes.
fn run_cargo(cargo: &mut Command) -> Result<(), LabError> {
    // Set by cargo for what it runs; its workspace is ours.
    if let Some(dir) = env::var_os("CARGO_MANIFEST_DIR") {
        cargo.current_dir(dir);
    }
    let status = cargo.stdin(Stdio::null()).stdout(io::stderr()).status();
    let status = status.map_err(LabError::io("run", cargo.get_program()))?;
    if status.success() {
        return Ok(());
    }
    Err(LabError::Tool {
        command: "cargo build of the services".into(),
        status: status.to_string(),
        output: "what it said stands above".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_folder_of_the_binaries() {
        for program in ["/t/release/homeward", "/t/release/deps/demo-0123"] {
            assert_eq!(binaries_beside(Path::new(program)), Path::new("/t/release"));
        }
        assert_eq!(arguments(true)[..4], ["build", "--quiet", "--release", "--package"]);
        assert_eq!(arguments(false).len(), 8);
    }
}
