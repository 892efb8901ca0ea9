//! RTM_NEWRULE to a policy rule (struct fib_rule_hdr, linux/fib_rules.h).

use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use overlaywatch_core::model::PolicyRule;

use super::{Malformed, prefix};

/// The policy rule that a message tells of.
///
/// A rule that chooses by something the model does not speak of (device,
/// protocol, ports, user, tunnel, type of service, `not`) or that may refuse what
/// it found (`suppress_prefixlength`) is marked so: taken without its condition,
/// it would name the wrong table for everything.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn rule(payload: &[u8]) -> Result<Option<PolicyRule>, Malformed> {
    let message = RuleMessage::parse(payload)?;
    let header = message.header;
    let v6 = match header.family {
        AddressFamily::Inet => false,
        AddressFamily::Inet6 => true,
        _ => return Ok(None),
    };
    let mut selective = header.tos != 0 || header.flags.contains(RuleFlags::Invert);
    let (mut priority, mut table) = (0, u32::from(header.table));
    let (mut from, mut to, mut value, mut mask) = (None, None, None, None);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Priority(own) => priority = own,
            RuleAttribute::Table(own) => table = own,
            RuleAttribute::Source(address) => from = Some(prefix(address, header.src_len)?),
            RuleAttribute::Destination(address) => to = Some(prefix(address, header.dst_len)?),
            RuleAttribute::FwMark(own) => value = Some(own),
            RuleAttribute::FwMask(own) => mask = Some(own),
            RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::L3MDev(true)
            | RuleAttribute::TunId(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_) => selective = true,
            // The kernel writes these always; all bits set means "off".
            RuleAttribute::SuppressPrefixLen(length) if length != u32::MAX => selective = true,
            RuleAttribute::SuppressIfGroup(group) if group != u32::MAX => selective = true,
            _ => {}
        }
    }
    // A mask without a value asks for the value 0 (fib_nl_fill_rule, net/core/fib_rules.c).
    let mark = match (value, mask) {
        (None, None) => None,
        (value, mask) => Some((value.unwrap_or(0), mask.unwrap_or(u32::MAX))),
    };
    let table = (header.action == RuleAction::ToTable).then_some(table);
    Ok(Some(PolicyRule { priority, table, from, to, mark, v6, selective }))
}
