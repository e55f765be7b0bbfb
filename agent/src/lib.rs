//! The agent on the protected VM: tracks written blocks, captures points, sends.
