//! Loading, attaching and pinning the BPF programs and maps, and finding them again.
//!
//! Knows files and the kernel's BPF objects; what the maps hold is [`super::set`]'s.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use aya::{
    Btf, BtfError, Ebpf, EbpfLoader,
    maps::{Array, Map, MapData},
    programs::{
        BtfTracePoint, ProgramError, ProgramInfo,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use engine::{io::SharedWords, units::Digest};

use super::{
    super::{TrackerError, block_device::truncated},
    control::Control,
    flight::Flight,
    layout,
    misses::Misses,
};

/// The programs, compiled by `scripts/build-bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/tracker.bpf.o");

/// Each with its tracepoint, in the order in which they are attached: a write that `issue` saw is seen by `complete`.
const PROGRAMS: [(&str, &str); 2] = [("complete", "block_rq_complete"), ("issue", "block_rq_issue")];
const MAPS: [&str; 4] = ["control", "marks", "disks", "inflight"];

/// How the names of pinned links begin.
pub(super) const LINK_PREFIX: &str = "link_";

/// The maps that user space shares.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) control: Arc<SharedWords>,
    pub(super) marks: Arc<SharedWords>,
    pub(super) flight: Flight,
}

/// Tells one compiled version of the programs from another.
pub(super) fn object_digest() -> u128 {
    truncated(Digest::of(OBJECT))
}

/// Refuses machines on which the programs could miss a write.
pub(super) fn check_machine() -> Result<(), TrackerError> {
    let unsupported = |reason: String| Err(TrackerError::Unsupported { reason });
    let cpus = possible_cpus()?;
    if cpus > layout::CPUS {
        return unsupported(format!(
            "it may have {cpus} CPUs, and at most {} are provided for",
            layout::CPUS
        ));
    }
    if fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1") {
        return unsupported(
            "its kernel is PREEMPT_RT, where a mark can be skipped: use the scan tracker".into(),
        );
    }
    Ok(())
}

/// How many CPUs there can be: one more than the highest number.
pub(super) fn possible_cpus() -> Result<usize, TrackerError> {
    const PATH: &str = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(PATH).map_err(TrackerError::io("read", PATH))?;
    let highest = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    highest.map(|highest| highest + 1).ok_or_else(|| TrackerError::Unsupported {
        reason: format!("{PATH} says `{}`, which is no list of CPUs", text.trim()),
    })
}

/// Programs loaded into the kernel, with their maps, not yet attached.
pub(super) struct Loaded {
    ebpf: Ebpf,
    pub(super) memory: Memory,
}

impl Loaded {
    /// Loads the programs with `words` words of marks.
    pub(super) fn new(words: usize) -> Result<Self, TrackerError> {
        let entries = u32::try_from(words).map_err(|_| TrackerError::TooMuch {
            reason: format!(
                "their maps would need {words} words, more than one BPF array holds: track fewer disks"
            ),
        })?;
        let ebpf = EbpfLoader::new()
            .map_max_entries("marks", entries)
            .load(OBJECT)
            .map_err(TrackerError::bpf("load the maps"))?;
        let array = |name: &str| match ebpf.map(name) {
            Some(Map::Array(data)) => Ok(data),
            _ => Err(missing(name)),
        };
        let control = map_words(array("control")?, layout::control::WORDS)?;
        let marks = map_words(array("marks")?, words)?;
        let flight = Flight::new(map_words(array("inflight")?, layout::FLIGHT_WORDS)?);
        let memory = Memory { control, marks, flight };
        Ok(Self { ebpf, memory })
    }

    /// Tells the programs of a disk: device number as the kernel writes it, description as in the layout.
    pub(super) fn add_disk(
        &mut self,
        dev: u32,
        description: [u64; layout::DESCRIPTION_WORDS],
    ) -> Result<(), TrackerError> {
        let map = self.ebpf.map_mut("disks").ok_or_else(|| missing("disks"))?;
        let table = Array::<_, [u64; layout::DESCRIPTION_WORDS]>::try_from(map);
        let mut table = table.map_err(TrackerError::bpf("open the disk table"))?;
        for place in layout::places_of(dev) {
            if table.get(&place, 0).map_err(TrackerError::bpf("read the disk table"))?[0] == 0 {
                return table.set(place, description, 0).map_err(TrackerError::bpf("fill the disk table"));
            }
        }
        let reason = "their device numbers crowd one corner of the disk table: track fewer disks".into();
        Err(TrackerError::TooMuch { reason })
    }

    /// Pins the maps in `dir`, attaches the programs and pins their links. From its return on every write is
    /// marked, whatever becomes of this process.
    pub(super) fn attach(mut self, dir: &Path) -> Result<(), TrackerError> {
        for (name, map) in self.ebpf.maps() {
            map.pin(dir.join(name)).map_err(TrackerError::bpf("pin a map"))?;
        }
        let btf = Btf::from_sys_fs().map_err(no_btf)?;
        for (name, tracepoint) in PROGRAMS {
            let program = self.program(name)?;
            program.load(tracepoint, &btf).map_err(explain_load)?;
            let link = program.attach().map_err(TrackerError::bpf("attach a program"))?;
            let link: FdLink = program.take_link(link).map_err(TrackerError::bpf("keep a link"))?.into();
            link.pin(dir.join(format!("{LINK_PREFIX}{name}"))).map_err(TrackerError::bpf("pin a link"))?;
        }
        Ok(())
    }

    fn program(&mut self, name: &str) -> Result<&mut BtfTracePoint, TrackerError> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        program.try_into().map_err(TrackerError::bpf("use a program"))
    }
}

/// Maps the memory of a pinned set; `words` says from its control array how large its marks are.
pub(super) fn open_pinned(
    dir: &Path,
    words: impl FnOnce(Control) -> Option<usize>,
) -> Result<Option<Memory>, TrackerError> {
    let open = |name: &str| MapData::from_pin(dir.join(name)).map_err(TrackerError::bpf("open a pinned map"));
    let info = |map: &MapData| map.info().map_err(TrackerError::bpf("inspect a pinned map"));
    let (control, marks, flight) = (open("control")?, open("marks")?, open("inflight")?);
    if info(&control)?.value_size() as usize != layout::control::WORDS * 8 {
        return Ok(None);
    }
    let control = map_words(&control, layout::control::WORDS)?;
    let Some(words) = words(Control::new(control.clone())) else { return Ok(None) };
    let size = |map| info(map).map(|info| info.max_entries() as usize * info.value_size() as usize / 8);
    if size(&marks)? != words || size(&flight)? != layout::FLIGHT_WORDS {
        return Ok(None);
    }
    let flight = Flight::new(map_words(&flight, layout::FLIGHT_WORDS)?);
    Ok(Some(Memory { control, marks: map_words(&marks, words)?, flight }))
}

/// The programs whose links are pinned in `dir`, if they are attached and mark into the maps pinned there.
pub(super) fn attached(dir: &Path) -> Result<Option<Misses>, TrackerError> {
    let map_id = |name: &&str| -> Result<u32, TrackerError> {
        let map = MapData::from_pin(dir.join(name)).map_err(TrackerError::bpf("open a pinned map"))?;
        Ok(map.info().map_err(TrackerError::bpf("inspect a pinned map"))?.id())
    };
    let maps = MAPS.iter().map(map_id).collect::<Result<Vec<_>, _>>()?;
    let loaded: Vec<ProgramInfo> = loaded_programs().filter_map(Result::ok).collect();
    let find = |name: &str| -> Result<Option<OwnedFd>, TrackerError> {
        let Ok(link) = PinnedLink::from_pin(dir.join(format!("{LINK_PREFIX}{name}"))) else {
            return Ok(None);
        };
        let link = FdLink::from(link).info().map_err(TrackerError::bpf("inspect a link"))?;
        let Some(program) = loaded.iter().find(|program| program.id() == link.program_id()) else {
            return Ok(None);
        };
        let used = program.map_ids().map_err(TrackerError::bpf("inspect a program"))?.unwrap_or_default();
        if program.name_as_str() != Some(name) || !maps.iter().all(|map| used.contains(map)) {
            return Ok(None);
        }
        let fd = program.fd().map_err(TrackerError::bpf("open a program"))?;
        fd.as_fd().try_clone_to_owned().map(Some).map_err(TrackerError::bpf("keep a program"))
    };
    Ok(find("issue")?.zip(find("complete")?).map(|(issue, complete)| Misses { issue, complete }))
}

fn map_words(map: &MapData, words: usize) -> Result<Arc<SharedWords>, TrackerError> {
    SharedWords::map(map.fd(), 0, words).map(Arc::new).map_err(TrackerError::bpf("map the memory"))
}

fn missing(name: &str) -> TrackerError {
    TrackerError::Unsupported {
        reason: format!("its BPF object has no `{name}`: rebuild it with scripts/build-bpf"),
    }
}

fn no_btf(error: BtfError) -> TrackerError {
    TrackerError::Unsupported {
        reason: format!("its kernel does not describe its types ({error}); it needs CONFIG_DEBUG_INFO_BTF"),
    }
}

/// Says which kernel is needed when the verifier does not know the loop helper.
fn explain_load(error: ProgramError) -> TrackerError {
    match &error {
        ProgramError::LoadError { verifier_log, .. } if verifier_log.to_string().contains("#181") => {
            TrackerError::Unsupported {
                reason: "its kernel has no bpf_loop: it needs Linux 5.17 or later; use the scan tracker"
                    .into(),
            }
        }
        _ => TrackerError::bpf("load the programs")(error),
    }
}
