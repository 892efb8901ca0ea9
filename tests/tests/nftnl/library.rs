//! What libnftnl makes of messages of the kernel.

use std::ffi::{CStr, c_char};

use nftnl::nftnl_sys as sys;
use sys::libc::nlmsghdr;

/// One netlink message, header and all, aligned as the library wants it.
pub(crate) struct Message(Vec<u32>);

impl Message {
    /// Copies it out of a datagram.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let words = bytes.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        });
        let message = Self(words.collect());
        assert!(message.0[0] as usize <= bytes.len() && message.0[0] >= 16, "a cut message");
        message
    }

    fn header(&self) -> *const nlmsghdr {
        self.0.as_ptr().cast()
    }
}

/// Text of the library, which it keeps.
fn text(from: *const c_char) -> Option<Vec<u8>> {
    if from.is_null() {
        return None;
    }
    // SAFETY: not null, and the library's strings end with a zero; it is copied
    // before the object that it belongs to is freed.
    Some(unsafe { CStr::from_ptr(from) }.to_bytes().to_vec())
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) family: u32,
    pub(crate) name: Vec<u8>,
    pub(crate) handle: u64,
}

impl Table {
    pub(crate) fn parse(message: &Message) -> Self {
        // SAFETY: the message is whole and aligned and outlives the calls; the
        // object is the library's own, is not used after it is freed, and is asked
        // only for attributes of the type that each has.
        unsafe {
            let table = sys::nftnl_table_alloc();
            assert_eq!(sys::nftnl_table_nlmsg_parse(message.header(), table), 0);
            let read = Self {
                family: sys::nftnl_table_get_u32(table, sys::NFTNL_TABLE_FAMILY as u16),
                name: text(sys::nftnl_table_get_str(table, sys::NFTNL_TABLE_NAME as u16)).unwrap(),
                handle: sys::nftnl_table_get_u64(table, sys::NFTNL_TABLE_HANDLE as u16),
            };
            sys::nftnl_table_free(table);
            read
        }
    }
}

/// A chain.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) family: u32,
    pub(crate) table: Vec<u8>,
    pub(crate) name: Vec<u8>,
    pub(crate) handle: u64,
    pub(crate) uses: u32,
    /// Of a base chain.
    pub(crate) base: Option<Base>,
}

/// What makes a chain a base chain.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) kind: Vec<u8>,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    /// `NF_DROP` is 0.
    pub(crate) policy: u32,
}

impl Chain {
    pub(crate) fn parse(message: &Message) -> Self {
        // SAFETY: as for a table.
        unsafe {
            let chain = sys::nftnl_chain_alloc();
            assert_eq!(sys::nftnl_chain_nlmsg_parse(message.header(), chain), 0);
            let number = |what| sys::nftnl_chain_get_u32(chain, what as u16);
            let word = |what| text(sys::nftnl_chain_get_str(chain, what as u16));
            let is_base = sys::nftnl_chain_is_set(chain, sys::NFTNL_CHAIN_HOOKNUM as u16);
            let base = is_base.then(|| Base {
                kind: word(sys::NFTNL_CHAIN_TYPE).unwrap(),
                hook: number(sys::NFTNL_CHAIN_HOOKNUM),
                priority: sys::nftnl_chain_get_s32(chain, sys::NFTNL_CHAIN_PRIO as u16),
                policy: number(sys::NFTNL_CHAIN_POLICY),
            });
            let read = Self {
                family: number(sys::NFTNL_CHAIN_FAMILY),
                table: word(sys::NFTNL_CHAIN_TABLE).unwrap(),
                name: word(sys::NFTNL_CHAIN_NAME).unwrap(),
                handle: sys::nftnl_chain_get_u64(chain, sys::NFTNL_CHAIN_HANDLE as u16),
                uses: number(sys::NFTNL_CHAIN_USE),
                base,
            };
            sys::nftnl_chain_free(chain);
            read
        }
    }
}

/// A rule.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) family: u32,
    pub(crate) table: Vec<u8>,
    pub(crate) chain: Vec<u8>,
    pub(crate) handle: u64,
    pub(crate) expressions: Vec<Expression>,
}

/// One expression of a rule.
#[derive(Debug)]
pub(crate) struct Expression {
    pub(crate) name: String,
    /// Of a counter.
    pub(crate) packets: Option<u64>,
    /// Of an immediate: the verdict, and where it jumps.
    pub(crate) verdict: Option<(i32, Option<Vec<u8>>)>,
    /// Of a payload: base, offset, length.
    pub(crate) place: Option<[u32; 3]>,
    /// Of a comparison: the operation and the value.
    pub(crate) compared: Option<(u32, Vec<u8>)>,
    /// Of an extension of xtables: its own name.
    pub(crate) extension: Option<Vec<u8>>,
}

impl Rule {
    pub(crate) fn parse(message: &Message) -> Self {
        // SAFETY: as for a table; the iterator is destroyed before the rule whose
        // expressions it gives.
        unsafe {
            let rule = sys::nftnl_rule_alloc();
            assert_eq!(sys::nftnl_rule_nlmsg_parse(message.header(), rule), 0);
            let word = |what| text(sys::nftnl_rule_get_str(rule, what as u16)).unwrap();
            let iterator = sys::nftnl_expr_iter_create(rule);
            let next = || Some(sys::nftnl_expr_iter_next(iterator)).filter(|next| !next.is_null());
            let expressions = std::iter::from_fn(next).map(|one| Expression::read(one)).collect();
            sys::nftnl_expr_iter_destroy(iterator);
            let read = Self {
                family: sys::nftnl_rule_get_u32(rule, sys::NFTNL_RULE_FAMILY as u16),
                table: word(sys::NFTNL_RULE_TABLE),
                chain: word(sys::NFTNL_RULE_CHAIN),
                handle: sys::nftnl_rule_get_u64(rule, sys::NFTNL_RULE_HANDLE as u16),
                expressions,
            };
            sys::nftnl_rule_free(rule);
            read
        }
    }

    /// The names of its expressions.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.expressions.iter().map(|one| one.name.as_str()).collect()
    }
}

impl Expression {
    /// # Safety
    /// It must be an expression of a rule that is not freed meanwhile.
    unsafe fn read(one: *const sys::nftnl_expr) -> Self {
        // SAFETY: the caller's; each attribute is asked for by its type, and only of
        // the kind of expression that has it.
        unsafe {
            let number = |what: u32| sys::nftnl_expr_get_u32(one, what as u16);
            let word = |what: u32| text(sys::nftnl_expr_get_str(one, what as u16));
            let name = String::from_utf8(word(sys::NFTNL_EXPR_NAME).unwrap()).unwrap();
            let is_set = |what: u32| sys::nftnl_expr_is_set(one, what as u16);
            Self {
                packets: (name == "counter")
                    .then(|| sys::nftnl_expr_get_u64(one, sys::NFTNL_EXPR_CTR_PACKETS as u16)),
                verdict: (name == "immediate" && is_set(sys::NFTNL_EXPR_IMM_VERDICT)).then(|| {
                    let to = is_set(sys::NFTNL_EXPR_IMM_CHAIN);
                    let to = to.then(|| word(sys::NFTNL_EXPR_IMM_CHAIN)).flatten();
                    (number(sys::NFTNL_EXPR_IMM_VERDICT).cast_signed(), to)
                }),
                place: (name == "payload").then(|| {
                    [
                        sys::NFTNL_EXPR_PAYLOAD_BASE,
                        sys::NFTNL_EXPR_PAYLOAD_OFFSET,
                        sys::NFTNL_EXPR_PAYLOAD_LEN,
                    ]
                    .map(number)
                }),
                compared: (name == "cmp").then(|| {
                    let mut length = 0;
                    let what = sys::NFTNL_EXPR_CMP_DATA as u16;
                    let value = sys::nftnl_expr_get(one, what, &raw mut length);
                    let value = std::slice::from_raw_parts(value.cast::<u8>(), length as usize);
                    (number(sys::NFTNL_EXPR_CMP_OP), value.to_vec())
                }),
                extension: match name.as_str() {
                    "match" => word(sys::NFTNL_EXPR_MT_NAME),
                    "target" => word(sys::NFTNL_EXPR_TG_NAME),
                    _ => None,
                },
                name,
            }
        }
    }
}

/// A set.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Set {
    pub(crate) family: u32,
    pub(crate) table: Vec<u8>,
    pub(crate) name: Vec<u8>,
}

impl Set {
    pub(crate) fn parse(message: &Message) -> Self {
        // SAFETY: as for a table.
        unsafe {
            let set = sys::nftnl_set_alloc();
            assert_eq!(sys::nftnl_set_nlmsg_parse(message.header(), set), 0);
            let word = |what| text(sys::nftnl_set_get_str(set, what as u16)).unwrap();
            let read = Self {
                family: sys::nftnl_set_get_u32(set, sys::NFTNL_SET_FAMILY as u16),
                table: word(sys::NFTNL_SET_TABLE),
                name: word(sys::NFTNL_SET_NAME),
            };
            sys::nftnl_set_free(set);
            read
        }
    }
}
