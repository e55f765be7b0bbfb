//! Many sets of pieces become one, in order; where several hold a block, the oldest set's piece counts.

use engine::units::Block;

use super::{
    Bounds,
    record::{Key, Piece},
    sorted::{Cursor, Scratch, Sorted, Writer},
    table::Table,
};
use crate::journal::JournalError;

/// Takes pieces of all ages, oldest first, and puts them in order with bounded memory.
pub(crate) struct Gatherer<'a> {
    scratch: &'a Scratch,
    fan_in: usize,
    /// Oldest first; all older than the table.
    sets: Vec<Sorted>,
    table: Table,
}

impl<'a> Gatherer<'a> {
    pub(crate) fn new(scratch: &'a Scratch, bounds: &Bounds) -> Self {
        Self { scratch, fan_in: bounds.fan_in, sets: Vec::new(), table: Table::default() }
    }

    /// Adds a piece that is newer than all before.
    pub(crate) fn push(&mut self, piece: &Piece) -> Result<(), JournalError> {
        self.table.add(piece);
        if self.table.len() > self.scratch.in_memory { self.flush() } else { Ok(()) }
    }

    /// Adds pieces that are newer than all before.
    pub(crate) fn push_all(&mut self, set: Sorted) -> Result<(), JournalError> {
        self.flush()?;
        self.sets.push(set);
        if self.sets.len() >= self.fan_in {
            self.sets = vec![merge(&self.sets, self.scratch)?];
        }
        Ok(())
    }

    /// The oldest piece of every block.
    pub(crate) fn finish(mut self) -> Result<Sorted, JournalError> {
        self.flush()?;
        match &self.sets[..] {
            [one] => Ok(one.clone()),
            sets => merge(sets, self.scratch),
        }
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        if self.table.is_empty() {
            return Ok(());
        }
        let mut writer = Writer::new(self.scratch);
        self.table.take().try_for_each(|piece| writer.push(piece))?;
        let set = writer.finish()?;
        self.push_all(set)
    }
}

/// One of the sets: where it stands, and what it has next.
struct Source {
    cursor: Cursor,
    head: Option<Piece>,
}

impl Source {
    /// Leaves out what lies before `key`.
    fn skip_to(&mut self, key: Key) -> Result<(), JournalError> {
        while let Some(head) = &self.head {
            if head.key() >= key {
                break;
            }
            let rest = head.within(Block(key.1), head.extent.end());
            match rest.filter(|rest| rest.key() == key) {
                Some(rest) => self.head = Some(rest),
                None => self.head = self.cursor.next()?,
            }
        }
        Ok(())
    }
}

fn merge(sets: &[Sorted], scratch: &Scratch) -> Result<Sorted, JournalError> {
    let open = |set: &Sorted| {
        let mut cursor = set.cursor();
        Ok(Source { head: cursor.next()?, cursor })
    };
    let mut sources = sets.iter().map(open).collect::<Result<Vec<_>, JournalError>>()?;
    let mut writer = Writer::new(scratch);
    // Of the heads that begin first, the oldest set's; up to where an older set has something.
    while let Some((winner, piece)) = first(&sources) {
        let older = sources[..winner].iter().filter_map(|source| source.head.as_ref()).map(Piece::key).min();
        let (_, end) = older.map_or(piece.end(), |older| older.min(piece.end()));
        let Some(part) = piece.within(piece.extent.start, Block(end)) else { break };
        writer.push(part)?;
        for source in &mut sources {
            source.skip_to(part.end())?;
        }
    }
    writer.finish()
}

/// The first head, and of several the oldest.
fn first(sources: &[Source]) -> Option<(usize, Piece)> {
    let heads = sources.iter().enumerate().filter_map(|(index, source)| Some((index, source.head?)));
    heads.min_by_key(|(index, head)| (head.key(), *index))
}
