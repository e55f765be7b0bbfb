//! Drills, as clients of other people's making see them: nbdinfo, nbdcopy, qemu-img, qemu-nbd and fio.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod ground;
mod readers;
mod writers;
