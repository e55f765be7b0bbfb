//! What the configuration may say of disks that exist.

use std::fs;

use master_target::config::Config;

const BASE: &str = r#"
listen = "127.0.0.1:0"
journal = "/j"
admin = "/a"
tls = { ca = "ca", cert = "cert", key = "key" }
datastore = [{ name = "gold", path = "/gold", kind = "nfs" }]
"#;

fn load(rest: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master-target.toml");
    fs::write(&path, format!("{BASE}{rest}")).unwrap();
    Config::load(&path).map_err(|error| error.to_string())
}

fn original(disk: &str, datastore: &str, descriptor: &str) -> String {
    format!(
        "[[original]]\nvm = \"web\"\ndisk = \"{disk}\"\ndatastore = \"{datastore}\"\ndescriptor = \"{descriptor}\"\n"
    )
}

#[test]
fn originals_alone_are_enough() {
    let config =
        load(&(original("sda", "gold", "web/a.vmdk") + &original("sdb", "gold", "web/b.vmdk"))).unwrap();
    assert_eq!(config.original.len(), 2);
    assert!(load("").unwrap_err().contains("[[original]]"));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let device = "[[device]]\nvm = \"web\"\ndisk = \"sda\"\ndevice = \"/dev/sdz\"\ncontent = \"keep\"\n";
    assert!(load(device).is_ok());
    for (text, words) in [
        (original("sda", "silver", "web/a.vmdk"), "names datastore \"silver\""),
        (original("sda", "gold", "/gold/web/a.vmdk"), "must lie below the datastore's folder"),
        (original("sda", "gold", "web/../../a.vmdk"), "must lie below the datastore's folder"),
        (original("sda", "gold", ""), "must lie below the datastore's folder"),
        (original("sda", "gold", "web/a.vmx"), "must be a .vmdk file"),
        (
            original("sda", "gold", "web/a.vmdk") + &original("sdb", "gold", "web//a.vmdk"),
            "of two disks: sda of VM web and sdb",
        ),
        (
            original("sda", "gold", "web/a.vmdk") + &original("sda", "gold", "web/b.vmdk"),
            "sda of VM web is named twice",
        ),
        (original("sda", "gold", "web/a.vmdk") + device, "sda of VM web is named twice"),
        (device.replace("keep", "perhaps"), "perhaps"),
    ] {
        let error = load(&text).unwrap_err();
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
}
