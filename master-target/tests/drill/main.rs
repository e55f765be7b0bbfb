//! Drills, as clients of other people's making see them: nbdinfo, nbdcopy, qemu-img, qemu-nbd and fio.

mod ground;
mod readers;
mod writers;
