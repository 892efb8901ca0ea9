//! Writes the binary and recorded seeds of the fuzz targets: what a real
//! kernel, a real agent and the lab's recordings say.
//!
//! In a fresh network namespace with tunnels, routes, rules, neighbours and
//! forwarding entries it dumps each table, and puts every message into the
//! folder of the target that reads it. Needs root, iproute2 and conntrack. Seeds that
//! people write (configuration, peers) are not touched.
//!
//! ```text
//! cargo run -p overlaywatch --example fuzz_seeds
//! ```

mod kernel;
mod probes;
mod records;
mod tracking;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A fuzzer learns little from a large input, and slowly.
const MAX_BYTES: usize = 4 << 10;

fn main() -> Result<()> {
    records::write()?;
    probes::write()?;
    // Last, since it leaves this process in another namespace.
    kernel::write()?;
    tracking::write()
}

/// The seeds of one target, written anew.
struct Seeds {
    folder: PathBuf,
    count: usize,
}

impl Seeds {
    fn of(target: &str) -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder, count: 0 })
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() <= MAX_BYTES, "{name} is {} bytes long", bytes.len());
        self.count += 1;
        let path = self.folder.join(format!("{:02}-{name}", self.count));
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }
}
