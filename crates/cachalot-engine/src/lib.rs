//! Engine, session, sampling and generation.
