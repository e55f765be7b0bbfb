//! The master target's word on where the stream stands, and what it means for the spool and the agent.

use std::time::Instant;

use engine::frame::{Position, Refusal};

use super::{Store, StreamNode, forward::Forward, target::Target};
use crate::spool::{Spool, SpoolError, layout};

/// What the master target's word means for the spool.
enum Join {
    /// The spool goes on from there.
    Joined,
    /// The spool was none or another, and now stands where the master target does.
    Adopted,
    /// The spool lost its end on the way, and goes on from there.
    Shortened,
}

impl StreamNode {
    pub(super) fn handle_welcome(&mut self, position: Position, window: u64, now: Instant) {
        match self.join(&position) {
            Ok(Join::Joined) => {}
            Ok(Join::Adopted) => self.close_agent_unless_waiting("the master target stands elsewhere"),
            Ok(Join::Shortened) => self.close_agent_unless_waiting("frames in its spool are damaged"),
            Err(None) => return self.close_target("nobody needs it any more", None),
            Err(Some(error)) => {
                self.note_spool_error(&error);
                return self.fail_target(&error.to_string(), now);
            }
        }
        let Target::Greeting { conn, link, .. } =
            std::mem::replace(&mut self.target, Target::Idle { retry: None })
        else {
            unreachable!("a Welcome is handled only while greeting")
        };
        tracing::info!(stream = %self.id, position = %position.seq, "connected to the master target");
        self.target = Target::Up { conn, link, forward: Forward::after(&position, window) };
        self.refused = None;
        self.trouble = None;
        if let Some(known) = self.spool().map(Spool::durable).filter(|known| known.seq > position.seq) {
            // The spool still has what is missing there, so nothing is lost; but it should not happen.
            tracing::error!(stream = %self.id, durable = %known.seq, found = %position.seq, "the master target lost frames that it had acknowledged; they are sent again");
        }
        self.handle_durable(position);
        if self.waiting_agent().is_some() {
            self.welcome_agent(now);
        }
        self.ask(self.questions(), now);
    }

    /// Makes the spool one that goes on after `position`. `Err(None)`: whoever asked has gone.
    fn join(&mut self, position: &Position) -> Result<Join, Option<SpoolError>> {
        let mut outcome = Join::Joined;
        loop {
            let Store::Known(spool) = &mut self.store else {
                self.create_store(*position)?;
                outcome = Join::Adopted;
                continue;
            };
            // Frames that the master target will not have are not sent again: whoever made them sends others.
            let joined = if std::mem::take(&mut self.distrusted) { Ok(false) } else { spool.join(position) };
            match joined {
                Ok(true) => return Ok(outcome),
                Ok(false) => {
                    let (held, bytes) = (spool.position().seq, spool.bytes());
                    tracing::warn!(
                        stream = %self.id, target = %position.seq, spool = %held, bytes,
                        "the master target stands where the spool cannot go on; the spool is discarded, the agent sends again"
                    );
                    self.counts.discards += 1;
                    spool.discard_and_adopt(*position)?;
                    outcome = Join::Adopted;
                }
                Err(error) => {
                    self.cut_damage(error)?;
                    outcome = Join::Shortened;
                }
            }
        }
    }

    /// Creates the spool of a stream that the master target knows, for the agent that was asked for.
    fn create_store(&mut self, position: Position) -> Result<(), Option<SpoolError>> {
        let Target::Greeting { asked_for, .. } = &self.target else { return Err(None) };
        let asked_for = asked_for.clone();
        match self.waiting_agent() {
            None => return Err(None),
            Some(waiting) if waiting.agent != asked_for.agent => {
                let reason = format!("stream {} belongs to agent {:?}", self.id, asked_for.agent);
                self.refuse_agent(Refusal::NotYours, &reason);
            }
            Some(_) => {}
        }
        let storage = (self.open_storage)().map_err(|source| SpoolError::Io {
            doing: "open",
            path: layout::folder(self.id),
            source,
        })?;
        let spool = Spool::create(storage, asked_for, position, self.room.clone())?;
        self.store = Store::Known(Box::new(spool));
        Ok(())
    }

    /// Gives up damaged frames; any other error is returned.
    pub(super) fn cut_damage(&mut self, error: SpoolError) -> Result<(), SpoolError> {
        let (SpoolError::Damaged { flaw, .. }, Store::Known(spool)) = (&error, &mut self.store) else {
            return Err(error);
        };
        let loss = spool.cut(flaw.clone())?;
        self.note_loss(&loss);
        Ok(())
    }

    fn close_agent_unless_waiting(&mut self, reason: &str) {
        if self.waiting_agent().is_none() {
            self.close_agent(reason);
        }
    }
}
