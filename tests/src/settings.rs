//! What the environment says about a run: seed, size, and whether there is root.

use rand::{SeedableRng, rngs::StdRng};

/// Whether loop devices and eBPF can be had. If not, says so: the test is skipped.
#[must_use]
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("{test}: skipped, since loop devices, mounts and the ebpf tracker need root");
    }
    root
}

/// `ci` times `HOMEWARD_ROUNDS`.
#[must_use]
pub fn rounds(ci: u64) -> u64 {
    ci * number("HOMEWARD_ROUNDS").unwrap_or(1)
}

/// The test's random numbers: from `HOMEWARD_SEED`, or from a seed that is printed.
#[must_use]
pub fn rng(test: &str) -> StdRng {
    let seed = number("HOMEWARD_SEED").unwrap_or_else(rand::random);
    println!("{test}: HOMEWARD_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
