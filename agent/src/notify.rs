//! What systemd is told.
