//! What a loader sees of an object: programs, maps, globals and their types.
//! That is the same whichever compiler built it.

use std::fmt::Debug;

use anyhow::{Context, Result};
use object::elf::{FileHeader64, STT_FUNC, STT_OBJECT};
use object::read::elf::ElfFile;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SectionKind, SymbolFlags};
use serde::{Deserialize, Serialize};

use super::btf::Btf;

type Elf<'o> = ElfFile<'o, FileHeader64<LittleEndian>>;

/// The section that definitions of maps are in.
const MAPS: &str = "maps";
/// Words in struct bpf_map_def: type, key size, value size, entries, flags, id, pinning.
const DEFINITION_WORDS: usize = 7;

/// An object's shape, in order of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    /// Sections with type information, and with line information.
    pub(super) btf: Vec<String>,
    pub(super) programs: Vec<Program>,
    pub(super) maps: Vec<Map>,
    pub(super) globals: Vec<Global>,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Program {
    name: String,
    /// Which names the hook.
    section: String,
}

/// A map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Map {
    name: String,
    /// As in enum bpf_map_type (include/uapi/linux/bpf.h).
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    /// One when it is pinned by name.
    pinning: u32,
    /// The types of keys and values, as BTF has them.
    types: String,
}

/// A variable that the loader may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Global {
    name: String,
    section: String,
    size: u64,
    /// The members: offset in bytes, name, type.
    members: Vec<String>,
}

impl Shape {
    /// The shape of an object.
    pub(super) fn read(object: &[u8]) -> Result<Self> {
        let elf = Elf::parse(object).context("no ELF object of 64 bits, little-endian")?;
        let btf = elf.section_by_name(".BTF").context("the object has no section .BTF")?;
        let btf = Btf::parse(btf.data()?)?;
        let present = [".BTF", ".BTF.ext"].map(str::to_owned).into_iter();
        let mut shape = Self {
            btf: present.filter(|name| elf.section_by_name(name).is_some()).collect(),
            ..Self::default()
        };
        for symbol in elf.symbols().filter(ObjectSymbol::is_global) {
            shape.add(&elf, &symbol, &btf)?;
        }
        shape.programs.sort_by(|one, other| one.name.cmp(&other.name));
        shape.maps.sort_by(|one, other| one.name.cmp(&other.name));
        shape.globals.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(shape)
    }

    fn add<'o>(
        &mut self,
        elf: &Elf<'o>,
        symbol: &impl ObjectSymbol<'o>,
        btf: &Btf<'_>,
    ) -> Result<()> {
        let Some(index) = symbol.section_index() else { return Ok(()) };
        let section = elf.section_by_index(index)?;
        let name = symbol.name()?.to_owned();
        let SymbolFlags::Elf { st_info, .. } = symbol.flags() else { return Ok(()) };
        let (kind, section_name) = (st_info & 15, section.name()?.to_owned());
        if kind == STT_FUNC {
            // Functions that programs call are in .text; the loader links them in.
            if section_name != ".text" {
                self.programs.push(Program { name, section: section_name });
            }
        } else if kind == STT_OBJECT && section_name == MAPS {
            self.maps.push(map(name, section.data()?, symbol.address(), btf)?);
        } else if kind == STT_OBJECT && is_data(section.kind()) && section_name.starts_with('.') {
            let members = btf.members(&name)?;
            self.globals.push(Global { members, name, section: section_name, size: symbol.size() });
        }
        Ok(())
    }

    /// Whether types and lines are there.
    pub(super) fn has_btf(&self) -> bool {
        self.btf == [".BTF", ".BTF.ext"]
    }

    /// What another shape has different; empty when nothing.
    pub(super) fn differences(&self, other: &Self) -> String {
        let mut found = Vec::new();
        compare(&self.btf, &other.btf, &mut found);
        compare(&self.programs, &other.programs, &mut found);
        compare(&self.maps, &other.maps, &mut found);
        compare(&self.globals, &other.globals, &mut found);
        found.join("; ")
    }
}

fn compare<T: Debug + PartialEq>(ours: &[T], theirs: &[T], found: &mut Vec<String>) {
    let lost = ours.iter().filter(|item| !theirs.contains(item));
    found.extend(lost.map(|item| format!("no {item:?}")));
    let new = theirs.iter().filter(|item| !ours.contains(item));
    found.extend(new.map(|item| format!("instead or more: {item:?}")));
}

fn is_data(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::UninitializedData)
}

/// The definition of a map at `address` of its section.
fn map(name: String, section: &[u8], address: u64, btf: &Btf<'_>) -> Result<Map> {
    let words = usize::try_from(address).ok().and_then(|start| section.get(start..)).map(|bytes| {
        let words = bytes.chunks_exact(4).take(DEFINITION_WORDS);
        words
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect::<Vec<_>>()
    });
    let Some(&[kind, key_size, value_size, max_entries, flags, _, pinning]) = words.as_deref()
    else {
        anyhow::bail!("the definition of map {name} is cut off");
    };
    let types = btf.type_of(&name)?;
    Ok(Map { name, kind, key_size, value_size, max_entries, flags, pinning, types })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::OBJECT;
    use crate::shell;

    fn committed() -> Vec<u8> {
        std::fs::read(shell::root().join(OBJECT)).unwrap()
    }

    #[test]
    fn reads_the_committed_object() {
        let shape = Shape::read(&committed()).unwrap();
        assert!(shape.has_btf());
        let section = |name: &str| {
            shape.programs.iter().find(|program| program.name == name).unwrap().section.as_str()
        };
        assert_eq!(section("ow_kfree_skb"), "raw_tp/kfree_skb");
        assert_eq!(section("ow_underlay_in"), "classifier");
        assert!(!shape.programs.iter().any(|program| program.name == "memcpy"));
        // struct bpf_lpm_trie_key is a word of prefix length and the address.
        let peers = Map {
            name: "PEERS".into(),
            kind: 11,
            key_size: 20,
            value_size: 16,
            max_entries: 16_384,
            flags: 1,
            pinning: 1,
            types: "LpmTrie<overlaywatch_ebpf::Address, overlaywatch_ebpf::Address>".into(),
        };
        assert!(shape.maps.contains(&peers), "{:?}", shape.maps);
        let kernel = shape.globals.iter().find(|global| global.name == "KERNEL").unwrap();
        assert_eq!(kernel.section, ".rodata");
        assert_eq!(kernel.members.first().map(String::as_str), Some("0 netns: u32"));
    }

    #[test]
    fn differences_are_named() {
        let shape = Shape::read(&committed()).unwrap();
        assert_eq!(shape.differences(&shape), "");
        let mut other = shape.clone();
        other.programs.retain(|program| program.name != "ow_kfree_skb");
        for map in &mut other.maps {
            if map.name == "DROPS" {
                map.max_entries = 1;
            }
        }
        let said = shape.differences(&other);
        for word in ["no Program", "ow_kfree_skb", "no Map", "DROPS", "max_entries: 1,"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(Shape::read(b"").is_err());
        let object = committed();
        for length in [64, 1_000, object.len() / 2, object.len() - 1] {
            assert!(Shape::read(&object[..length]).is_err(), "{length} bytes");
        }
    }
}
