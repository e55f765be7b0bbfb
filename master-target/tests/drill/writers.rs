//! Drills that are written to: clients get back what they wrote, and nothing of it reaches the image.

use std::{fs, os::unix::net::UnixStream, path::Path};

use crate::ground::{Ground, MIB, make_image, run};

#[test]
fn qemu_img_writes_and_compares_and_the_image_stays() {
    let ground = Ground::new(8 * MIB, true);
    let (before, other) = (fs::read(&ground.image).unwrap(), ground.path("other.img"));
    make_image(Path::new(&other), 8 * MIB);
    let mut bytes = fs::read(&other).unwrap();
    bytes.reverse();
    fs::write(&other, bytes).unwrap();
    // Zeros are written, too: the drill had data there.
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &other, &ground.uri()]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &other, &ground.uri()]);
    assert!(ground.budget.used() >= 4 * MIB);
    assert!(fs::read(&ground.image).unwrap() == before);
}

#[test]
fn trim_and_write_zeroes_make_holes_and_no_hole_does_not() {
    let ground = Ground::new(8 * MIB, true);
    let uri = ground.uri();
    let commands = [
        "discard 0 64k",
        "write -z 64k 64k",
        "write -zu 128k 64k",
        "write -P 5 192k 1k",
        "flush",
        "read -P 0 0 192k",
    ];
    let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    let said = run("qemu-io", &[&["-f", "raw"], &args[..], &[&uri]].concat());
    assert!(!said.contains("failed"), "{said}");
    let map = run("nbdinfo", &["--map", &uri]);
    let first = |line: usize| {
        let fields: Vec<_> = map.lines().nth(line).unwrap_or_default().split_whitespace().collect();
        (fields[0].parse::<u64>().unwrap(), fields[1].parse::<u64>().unwrap(), fields[2] == "0")
    };
    // qemu asks for `write -z` without, and for `write -zu` with permission to make a hole.
    assert_eq!(first(0), (0, 64 << 10, false), "{map}");
    assert_eq!(first(1), (64 << 10, 64 << 10, true), "{map}");
    assert_eq!(first(2), (128 << 10, 64 << 10, false), "{map}");
    assert!(first(3).2, "{map}");
}

#[test]
fn fio_verifies_what_it_wrote_over_many_requests_in_flight() {
    let ground = Ground::new(32 * MIB, true);
    let uri = format!("--uri={}", ground.uri());
    let work = [
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--bs_unaligned",
        "--iodepth=32",
        "--size=32M",
        "--verify=crc32c",
    ];
    let fixed =
        ["--name=drill", "--ioengine=nbd", "--randseed=1", "--verify_fatal=1", "--verify_state_save=0", &uri];
    run("fio", &[&fixed[..], &work].concat());
}

#[test]
fn it_ends_with_its_clients_and_its_socket() {
    let ground = Ground::new(MIB, true);
    let socket = ground.dir.path().join("nbd.sock");
    let idle: Vec<_> = (0..3).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    drop(ground.server);
    assert!(!socket.exists());
    assert_eq!(ground.budget.used(), 0);
    drop(idle);
}
