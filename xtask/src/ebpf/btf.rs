//! The little of BTF that tells which types variables have
//! (Documentation/bpf/btf.rst in the kernel's source).

use anyhow::{Context, Result, bail, ensure};

const MAGIC: u32 = 0xeb9f;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const VAR: u32 = 14;
const WORD: usize = 4;

/// Types and their names.
pub(super) struct Btf<'o> {
    types: Vec<Type<'o>>,
    strings: &'o [u8],
}

/// One type: the first is number one.
struct Type<'o> {
    name: u32,
    kind: u32,
    /// A type's number or a size, by kind.
    size_or_type: u32,
    /// What follows the common part.
    rest: &'o [u8],
}

impl<'o> Btf<'o> {
    /// Reads a section .BTF.
    pub(super) fn parse(section: &'o [u8]) -> Result<Self> {
        let field = |at| word(section, at).context("the header of .BTF is cut off");
        ensure!(field(0)? & 0xffff == MAGIC, "the section .BTF begins with another magic number");
        let header = size(field(1)?);
        let part = |offset: usize, length: u32| {
            let start = header + offset;
            section.get(start..start + size(length)).context("the section .BTF is cut off")
        };
        let strings = part(size(field(4)?), field(5)?)?;
        let mut rest = part(size(field(2)?), field(3)?)?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (found, after) = next(rest)?;
            types.push(found);
            rest = after;
        }
        Ok(Self { types, strings })
    }

    /// The name of a variable's type, as Rust writes it.
    pub(super) fn type_of(&self, variable: &str) -> Result<String> {
        self.name_of(self.variable(variable)?)
    }

    /// The members of a variable that is a structure, else its type alone.
    pub(super) fn members(&self, variable: &str) -> Result<Vec<String>> {
        let found = self.variable(variable)?;
        if found.kind != STRUCT {
            return Ok(vec![format!("0 {variable}: {}", self.name_of(found)?)]);
        }
        let members = found.rest.chunks_exact(3 * WORD).map(|member| {
            let [name, number, bits] = [0, 1, 2].map(|at| word(member, at).unwrap_or_default());
            let offset = (bits & 0xff_ffff) / 8;
            let name = self.string(name)?;
            Ok(format!("{offset} {name}: {}", self.name_of(self.numbered(number)?)?))
        });
        members.collect()
    }

    fn variable(&self, name: &str) -> Result<&Type<'o>> {
        for variable in self.types.iter().filter(|candidate| candidate.kind == VAR) {
            if self.string(variable.name)? == name {
                return self.numbered(variable.size_or_type);
            }
        }
        bail!("BTF knows no variable {name}")
    }

    fn numbered(&self, number: u32) -> Result<&Type<'o>> {
        let index = size(number).checked_sub(1);
        index
            .and_then(|index| self.types.get(index))
            .with_context(|| format!("no BTF type {number}"))
    }

    fn name_of(&self, of: &Type<'_>) -> Result<String> {
        if of.kind == ARRAY {
            let [element, count] = [0, 2].map(|at| word(of.rest, at).unwrap_or_default());
            return Ok(format!("[{}; {count}]", self.name_of(self.numbered(element)?)?));
        }
        Ok(plain(&self.string(of.name)?))
    }

    fn string(&self, offset: u32) -> Result<String> {
        let bytes = self.strings.get(size(offset)..).context("a name of BTF is cut off")?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

/// The type that `bytes` begin with, and what follows it.
fn next(bytes: &[u8]) -> Result<(Type<'_>, &[u8])> {
    let field = |at| word(bytes, at).context("a BTF type is cut off");
    let (name, info, size_or_type) = (field(0)?, field(1)?, field(2)?);
    let (kind, count) = (info >> 24 & 31, size(info & 0xffff));
    let words = match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | VAR | 17 => 1,
        ARRAY => 3,
        // Enumeration, function prototype.
        6 | 13 => 2 * count,
        // Structure, union, section, enumeration of 64 bits.
        STRUCT | 5 | 15 | 19 => 3 * count,
        _ => bail!("BTF kind {kind} is not known"),
    };
    let (start, end) = (3 * WORD, (3 + words) * WORD);
    let rest = bytes.get(start..end).context("a BTF type is cut off")?;
    Ok((Type { name, kind, size_or_type, rest }, &bytes[end..]))
}

/// The word numbered `at`.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at * WORD..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// A word as a size; xtask runs where sizes have no less.
const fn size(word: u32) -> usize {
    word as usize
}

/// Turns `_3C_` back to `<`: BTF allows letters, digits and `_` in names, and
/// the linker writes others by their number.
fn plain(name: &str) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some(start) = rest.find('_') {
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        if let Some(sign) = sign(rest) {
            text.push(sign);
            rest = &rest[4..];
        } else {
            text.push('_');
            rest = &rest[1..];
        }
    }
    text + rest
}

/// The sign that `text` begins with as `_3C_`.
fn sign(text: &str) -> Option<char> {
    let code = text.get(1..3).filter(|_| text.get(3..4) == Some("_"))?;
    let sign = u8::from_str_radix(code, 16).ok()?;
    // A letter or a digit is itself, so this is a name such as `a_41_b`.
    (sign.is_ascii_punctuation() || sign == b' ').then(|| sign.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section .BTF with `u32`, `[u32; 2]`, a structure of both, and a variable of it.
    fn section() -> Vec<u8> {
        let strings = b"\0u32\0Pair_3C_u32_3E_\0one\0two\0PAIR\0\0\0";
        let [u32_name, pair, one, two, variable] = [1, 5, 21, 25, 29];
        let types = [
            vec![u32_name, 1 << 24, 4, 32],
            vec![0, ARRAY << 24, 0, 1, 1, 2],
            vec![pair, STRUCT << 24 | 2, 12, one, 1, 0, two, 2, 32],
            vec![variable, VAR << 24, 3, 1],
        ]
        .concat();
        let length = u32::try_from(types.len() * WORD).unwrap();
        let header =
            [MAGIC | 1 << 16, 24, 0, length, length, u32::try_from(strings.len()).unwrap()];
        let words = header.into_iter().chain(types);
        words.flat_map(u32::to_le_bytes).chain(strings.iter().copied()).collect()
    }

    #[test]
    fn reads_variables() {
        let section = section();
        let btf = Btf::parse(&section).unwrap();
        assert_eq!(btf.type_of("PAIR").unwrap(), "Pair<u32>");
        assert_eq!(btf.members("PAIR").unwrap(), ["0 one: u32", "4 two: [u32; 2]"]);
        assert!(btf.type_of("NONE").is_err());
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let section = section();
        for length in 0..section.len() {
            assert!(Btf::parse(&section[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn names_are_as_rust_writes_them() {
        assert_eq!(plain("HashMap_3C_a_3A__3A_Key_2C__20_u8_3E_"), "HashMap<a::Key, u8>");
        assert_eq!(plain("__sk_buff"), "__sk_buff");
        assert_eq!(plain("a_41_b_"), "a_41_b_");
    }
}
