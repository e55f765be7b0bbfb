//! The configurations in README.md are ones that the services take.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

#[test]
fn its_configurations_are_read() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut files = BTreeSet::new();
    for block in readme.split("```toml\n# /etc/homeward/").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let path = folder.path().join(name);
        // A file may be told in several parts.
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, before + rest.split("```").next().unwrap()).unwrap();
        files.insert(path);
    }
    let file = |name: &str| -> PathBuf { files.iter().find(|path| path.ends_with(name)).unwrap().clone() };
    agent::config::Config::load(&file("agent.toml")).unwrap();
    let process_server = process_server::config::Config::load(&file("process-server.toml")).unwrap();
    assert_eq!(process_server.groups().len(), 1);
    master_target::config::Config::load(&file("master-target.toml")).unwrap();
    assert_eq!(files.len(), 3);
}
