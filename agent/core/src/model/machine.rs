//! The machine under the kernel: what it runs, whose it is, and which modules the
//! kernel could load.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the host's files say, read every few minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The distribution, as it calls itself (`PRETTY_NAME` of os-release(5)).
    pub distribution: Option<String>,
    /// Its identifier (`ID`): "debian".
    pub distribution_id: Option<String>,
    /// Who made the machine, as its firmware says (DMI, SMBIOS 3.1.2): a cloud's
    /// name on many clouds.
    pub vendor: Option<String>,
    /// The product, likewise.
    pub product: Option<String>,
    /// Modules that overlays need, and whether this kernel has them; none where
    /// the kernel's folder of modules cannot be seen.
    pub modules: Option<BTreeMap<String, Module>>,
}

/// Whether a kernel has a module that is not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Module {
    /// Part of the kernel itself (modules.builtin).
    BuiltIn,
    /// It can be loaded (modules.dep).
    Loadable,
    /// Neither: it is in a package that is not installed, or was not built.
    Absent,
}
