//! The promise: whatever breaks, at whatever moment, every sealed point is exact and replication goes on by itself.
//!
//! `HOMEWARD_SEED=N` replays one seed; `HOMEWARD_ROUNDS=N` runs N times as many (CONTRIBUTING.md).

use homeward_tests::world::World;

const SEEDS: u64 = 1000;
const STEPS: u32 = 1500;

#[test]
fn a_thousand_seeds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seeds = match number("HOMEWARD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS * number("HOMEWARD_ROUNDS").unwrap_or(1),
    };
    let (mut points, mut mishaps) = (0, 0);
    let all = seeds.end - seeds.start;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| World::new(seed).run(STEPS)).unwrap_or_else(|panic| {
            eprintln!("seed {seed} failed; replay: HOMEWARD_SEED={seed} cargo test -p homeward-tests --test simulation");
            std::panic::resume_unwind(panic)
        });
        points += outcome.points;
        mishaps += outcome.mishaps;
    }
    println!("{all} seeds, {mishaps} mishaps, {points} points exact");
    assert!(points as u64 > 2 * all, "hardly any points were made");
}
