//! Read-only drills.

use crate::ground::{Ground, MIB, run};

#[test]
fn nbdinfo_and_nbdcopy_see_the_disk() {
    let ground = Ground::new(8 * MIB + 512, false);
    let info = run("nbdinfo", &[&ground.uri()]);
    for line in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "description: web at noon",
        "export-size: 8389120",
        "base:allocation",
        "is_read_only: true",
        "can_multi_conn: true",
        "block_size_maximum: 33554432",
    ] {
        assert!(info.contains(line), "{line} is not in\n{info}");
    }
    let list = run("nbdinfo", &["--list", &ground.uri()]);
    assert!(list.contains("export=\"sda\""), "{list}");
    let map = run("nbdinfo", &["--map", &ground.uri()]);
    let kinds: Vec<_> =
        map.lines().map(|line| line.split_whitespace().last().unwrap_or("").to_owned()).collect();
    assert_eq!(kinds.len(), 9, "{map}");
    assert!(kinds[0] == "data" && kinds[1].ends_with("zero"), "{map}");

    for more in [&[][..], &["--connections=1", "--requests=1", "--request-size=33554432"]] {
        let copy = ground.path("copy.img");
        let uri = ground.uri();
        run("nbdcopy", &[more, &[&uri, &copy]].concat());
        assert!(std::fs::read(&ground.image).unwrap() == std::fs::read(&copy).unwrap());
        std::fs::remove_file(copy).unwrap();
    }
}

#[test]
fn qemu_img_sees_the_disk() {
    let ground = Ground::new(8 * MIB, false);
    let image = ground.image.display().to_string();
    let info = run("qemu-img", &["info", "--output=json", &ground.uri()]);
    assert!(info.contains("8388608"), "{info}");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &ground.uri(), &image]);
    let map = run("qemu-img", &["map", "--output=json", &ground.uri()]);
    assert_eq!(map.matches("\"zero\": true").count(), 4, "{map}");
    let copy = ground.path("copy.qcow2");
    run("qemu-img", &["convert", "-O", "qcow2", &ground.uri(), &copy]);
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &copy, &image]);
}
