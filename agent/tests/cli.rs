//! The command as its users meet it, without a service behind it: messages, JSON and exit codes.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn run(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_homeward-agent")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// The commented example, with its paths inside `dir`.
fn example(dir: &Path) -> String {
    let text = include_str!("../agent.toml").replace("/run/homeward", dir.to_str().unwrap());
    let path = dir.join("agent.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn without_a_service_status_and_point_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = example(dir.path());
    for command in [&["status"][..], &["point"], &["point", "--wait"]] {
        let (code, stdout, stderr) = run(&[&["--config", &config], command].concat());
        assert_eq!((code, stdout.as_str()), (4, ""));
        assert!(stderr.contains("not running") && stderr.contains("agent.sock"), "{stderr}");

        let (code, stdout, _) = run(&[&["--config", &config, "--json"], command].concat());
        let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((code, &object["ok"], &object["exit"]), (4, &false.into(), &4.into()));
    }
}

#[test]
fn a_wrong_configuration_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = example(dir.path());
    let text = fs::read_to_string(&config).unwrap().replace("point_interval =", "point_intervall =");
    fs::write(&config, text).unwrap();
    let (code, _, stderr) = run(&["status", "--config", &config]);
    assert_eq!(code, 3);
    assert!(stderr.contains("agent.toml:") && stderr.contains("point_intervall"), "{stderr}");

    let (code, _, stderr) = run(&["serve", "--config", "/nonexistent.toml"]);
    assert_eq!(code, 3);
    assert!(stderr.contains("/nonexistent.toml"), "{stderr}");
}

#[test]
fn serve_wants_its_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let config = example(dir.path());
    let text = fs::read_to_string(&config).unwrap().replace("/etc/homeward", "/nonexistent");
    fs::write(&config, text).unwrap();
    let (code, _, stderr) = run(&["serve", "--config", &config]);
    assert_eq!(code, 3);
    assert!(stderr.contains("/nonexistent/ca.pem"), "{stderr}");
}

#[test]
fn help_has_examples_and_hides_what_is_not_for_people() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, 0);
    assert!(help.contains("Examples:") && help.contains("Exit codes"), "{help}");
    assert!(!help.contains("watchdog"), "{help}");
    let (code, script, _) = run(&["completions", "bash"]);
    assert_eq!(code, 0);
    assert!(script.contains("homeward-agent"));
}
