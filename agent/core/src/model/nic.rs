//! What drives a device, and which work it takes off the CPU.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A device as ethtool(8) describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The device.
    pub device: String,
    /// Its driver; none where the kernel does not tell.
    pub driver: Option<String>,
    /// The driver's version, as a rule the kernel's release.
    pub version: Option<String>,
    /// The device's firmware.
    pub firmware: Option<String>,
    /// Offloads that are on, among those that touch checksums and tunnels, by the
    /// kernel's own names (`netdev_features_strings`, net/ethtool/common.c), in
    /// order; none where they cannot be asked for.
    pub offloads: Option<Vec<String>>,
}

impl fmt::Display for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)?;
        match &self.driver {
            Some(driver) => write!(f, ": driver {driver}")?,
            None => f.write_str(": driver unknown")?,
        }
        if let Some(version) = &self.version {
            write!(f, " {version}")?;
        }
        if let Some(firmware) = &self.firmware {
            write!(f, ", firmware {firmware}")?;
        }
        match self.offloads.as_deref() {
            None => Ok(()),
            Some([]) => f.write_str(", no offload of checksums or tunnels is on"),
            Some(on) => write!(f, ", on are {}", on.join(", ")),
        }
    }
}
