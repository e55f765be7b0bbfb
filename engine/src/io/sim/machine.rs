//! The machine under a simulated storage: its disk, its log, its faults, and every operation on them.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    disk::{Change, Disk, Ino, Node, ROOT, names_of},
    faults::{Fault, Faults, SimEvent, SimOp},
    power_cut::{Entry, Luck, Replay},
};

/// Free space where no quota is set.
const PLENTY: u64 = 1 << 50;

type Hook = Arc<dyn Fn(&SimEvent<'_>) + Send + Sync>;

/// A machine that a storage and its open files share.
pub(super) struct SharedMachine {
    machine: Mutex<Machine>,
    hook: Mutex<Option<Hook>>,
}

impl SharedMachine {
    pub(super) fn new(machine: Machine) -> Self {
        Self { machine: Mutex::new(machine), hook: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_hook(&self, hook: Hook) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    /// Starts an operation: calls the hook, without any lock, then says whether the operation is to fail.
    pub(super) fn begin(&self, op: SimOp, path: &str) -> (MutexGuard<'_, Machine>, Option<Fault>) {
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(hook) = hook {
            let at = self.lock().log.len();
            hook(&SimEvent { op, path, at });
        }
        let mut machine = self.lock();
        let fault = machine.faults.strike(op);
        (machine, fault)
    }
}

pub(super) struct Machine {
    /// As the processes see it.
    pub(super) disk: Disk,
    pub(super) log: Vec<Entry>,
    pub(super) faults: Faults,
    pub(super) quota: Option<u64>,
    /// Before the log.
    base: Disk,
    /// Stands where the last power cut was.
    replay: Replay,
    next_ino: Ino,
    /// How many handles each file has.
    handles: BTreeMap<Ino, usize>,
}

impl Machine {
    pub(super) fn over(disk: Disk) -> Self {
        Self {
            log: Vec::new(),
            faults: Faults::default(),
            quota: None,
            base: disk.clone(),
            replay: Replay::from(disk.clone()),
            next_ino: ROOT + 1,
            handles: BTreeMap::new(),
            disk,
        }
    }

    pub(super) fn after_kill(&self) -> Self {
        Self {
            disk: self.disk.clone(),
            log: self.log.clone(),
            faults: Faults::default(),
            quota: self.quota,
            base: self.base.clone(),
            replay: self.replay.clone(),
            next_ino: self.next_ino,
            handles: BTreeMap::new(),
        }
    }

    pub(super) fn after_power_cut(&mut self, at: usize, luck: &mut Luck) -> Self {
        if at < self.replay.at {
            self.replay = Replay::from(self.base.clone());
        }
        self.replay.advance(&self.log, at);
        Self { quota: self.quota, next_ino: self.next_ino, ..Self::over(self.replay.cut(luck)) }
    }

    /// Everything so far is durable, its log is gone, and so are files that are removed and that nobody has open.
    pub(super) fn forget_log(&mut self) {
        self.log = Vec::new();
        self.disk.sweep(|file| self.handles.contains_key(&file));
        self.base = self.disk.clone();
        self.replay = Replay::from(self.disk.clone());
    }

    pub(super) fn handle_opened(&mut self, file: Ino) {
        *self.handles.entry(file).or_default() += 1;
    }

    pub(super) fn handle_closed(&mut self, file: Ino) {
        if let Some(count) = self.handles.get_mut(&file) {
            *count -= 1;
            if *count == 0 {
                self.handles.remove(&file);
            }
        }
    }

    fn change(&mut self, change: Change) {
        self.disk.apply(&change);
        self.log.push(Entry::Change(change));
    }

    pub(super) fn free_space(&self) -> u64 {
        self.quota.map_or(PLENTY, |quota| quota.saturating_sub(self.disk.used()))
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<Ino> {
        let ino = self.disk.lookup(path)?;
        match self.disk.node(ino) {
            Some(Node::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            _ => Ok(ino),
        }
    }

    pub(super) fn folder(&self, path: &Path) -> io::Result<Ino> {
        let ino = self.disk.lookup(path)?;
        self.disk.dir(ino).map(|_| ino)
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<Ino> {
        let (at, None) = self.disk.locate(path)? else { return Err(io::ErrorKind::AlreadyExists.into()) };
        Ok(self.create_node(at, false))
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut dir = ROOT;
        let names = names_of(path)?;
        for (depth, name) in names.iter().enumerate() {
            let found = self.disk.dir(dir)?.get(*name).copied();
            dir = found.unwrap_or_else(|| self.create_node((dir, (*name).to_owned()), true));
            if depth + 1 == names.len() && self.disk.dir(dir).is_err() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
        }
        Ok(())
    }

    fn create_node(&mut self, at: (Ino, String), is_dir: bool) -> Ino {
        let node = self.next_ino;
        self.next_ino += 1;
        self.change(Change::Create { at, node, is_dir });
        node
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_at, node) = self.disk.locate(from)?;
        let (to_at, replaced) = self.disk.locate(to)?;
        let node = node.ok_or(io::ErrorKind::NotFound)?;
        let (from_names, to_names) = (names_of(from)?, names_of(to)?);
        if from_at == to_at {
            return Ok(());
        }
        if to_names.starts_with(&from_names) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if from_names.starts_with(&to_names) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let names_in = |ino| self.disk.dir(ino).ok().map(|names| names.len());
        match (names_in(node), replaced.map(names_in)) {
            (Some(_), Some(None)) => Err(io::ErrorKind::NotADirectory),
            (None, Some(Some(_))) => Err(io::ErrorKind::IsADirectory),
            (Some(_), Some(Some(1..))) => Err(io::ErrorKind::DirectoryNotEmpty),
            _ => Ok(()),
        }?;
        self.change(Change::Rename { from: from_at, to: to_at, node });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (at, node) = self.disk.locate(path)?;
        let node = node.ok_or(io::ErrorKind::NotFound)?;
        if self.disk.dir(node).is_ok() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.change(Change::Remove { at });
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        file: Ino,
        offset: u64,
        bytes: &[u8],
        fault: Option<Fault>,
    ) -> io::Result<()> {
        let len = bytes.len() as u64;
        if offset.checked_add(len).is_none() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let (kept, fault) = match fault {
            Some(fault) => (len / 2, Some(fault)),
            None if self.quota.is_none() => (len, None),
            None => {
                let kept = self.disk.content(file).writable(offset, len, self.free_space());
                (kept, (kept < len).then_some(Fault::NoSpace))
            }
        };
        if kept > 0 {
            self.change(Change::Write { file, offset, bytes: bytes[..kept as usize].into() });
        }
        fault.map_or(Ok(()), |fault| Err(fault.into()))
    }

    pub(super) fn zero(&mut self, file: Ino, offset: u64, len: u64) {
        self.change(Change::Zero { file, offset, len });
    }

    pub(super) fn set_len(&mut self, file: Ino, len: u64) {
        self.change(Change::SetLen { file, len });
    }

    pub(super) fn flip(&mut self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let file = self.open(path)?;
        self.change(Change::Flip { file, offset, mask });
        Ok(())
    }

    pub(super) fn sync(&mut self, node: Ino, fault: Option<Fault>) -> io::Result<()> {
        self.log.push(Entry::Sync { node, good: fault.is_none() });
        fault.map_or(Ok(()), |fault| Err(fault.into()))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sync { node, good: true } => write!(f, "sync of #{node}"),
            Self::Sync { node, good: false } => write!(f, "failed sync of #{node}"),
            Self::Change(Change::Write { file, offset, bytes }) => {
                write!(f, "write of {} bytes at {offset} of #{file}", bytes.len())
            }
            Self::Change(Change::Create { at: (dir, name), node, .. }) => {
                write!(f, "creation of #{node} as {name} in #{dir}")
            }
            Self::Change(other) => write!(f, "{other:?}"),
        }
    }
}
