//! The configurations in README.md are ones that the services take.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

#[test]
fn its_configurations_are_read() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for block in readme.split("```toml\n# /etc/homeward/").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, rest.split("```").next().unwrap()).unwrap();
        files.push(path);
    }
    let file = |name: &str| -> PathBuf { files.iter().find(|path| path.ends_with(name)).unwrap().clone() };
    agent::config::Config::load(&file("agent.toml")).unwrap();
    process_server::config::Config::load(&file("process-server.toml")).unwrap();
    master_target::config::Config::load(&file("master-target.toml")).unwrap();
    assert_eq!(files.len(), 3);
}
