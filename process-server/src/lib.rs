//! The process server: relays frames through a bounded, crash-safe spool.
