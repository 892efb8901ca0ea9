//! What an agent's programs counted of drops.

use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use overlaywatch_ebpf::{DropKey, Dropped, MAX_DROPS, missed};
use serde::Serialize;

/// The sum over all kinds of drops.
#[derive(Serialize)]
pub(crate) struct Counted {
    packets: u64,
    kinds: u64,
    most_kinds: u32,
    /// Things that had no room in one of the maps.
    missed: u64,
}

/// Reads the maps that are pinned in a folder.
pub(crate) fn read(folder: &Path) -> Result<Counted> {
    let drops: HashMap<MapData, DropKey, Dropped> = open(folder, "DROPS")?;
    let misses: PerCpuArray<MapData, u64> = open(folder, "MISSED")?;
    let mut counted = Counted { packets: 0, kinds: 0, most_kinds: MAX_DROPS, missed: 0 };
    for entry in drops.iter() {
        counted.packets += entry?.1.packets;
        counted.kinds += 1;
    }
    for map in 0..missed::COUNT {
        counted.missed += misses.get(&map, 0)?.iter().sum::<u64>();
    }
    Ok(counted)
}

fn open<M: TryFrom<Map, Error = MapError>>(folder: &Path, name: &str) -> Result<M> {
    let path = folder.join(name);
    let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    Ok(M::try_from(Map::from_map_data(map)?)?)
}
