//! RTM_NEWQDISC to a queueing discipline (struct tcmsg, linux/rtnetlink.h).

use netlink_packet_core::{DecodeError, NlasIterator};
use overlaywatch_core::model::{IfIndex, Qdisc};

/// `struct tcmsg`, bytes.
const HEADER_BYTES: usize = 20;
/// `TC_H_ROOT` (include/uapi/linux/pkt_sched.h).
const ROOT: u32 = u32::MAX;
/// `TCA_KIND` and `TCA_STATS2`, and `TCA_STATS_QUEUE` in the latter
/// (include/uapi/linux/rtnetlink.h, gen_stats.h).
const KIND: u16 = 1;
const STATS2: u16 = 7;
const STATS_QUEUE: u16 = 3;
/// What a device has that has no queue (net/sched/sch_generic.c).
const NO_QUEUE: &str = "noqueue";
/// The longest name of a kind (`IFNAMSIZ`).
const KIND_BYTES: usize = 16;

/// The discipline at the root of a device; none for those below it, whose drops
/// count there too, for the hooks of classifiers, and for a device without a queue.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn qdisc(payload: &[u8]) -> Result<Option<Qdisc>, DecodeError> {
    let (Some(index), Some(parent)) = (word(payload, 4), word(payload, 12)) else {
        return Err(DecodeError::from("a queueing discipline without a header"));
    };
    if parent != ROOT {
        return Ok(None);
    }
    let mut qdisc = Qdisc { index: IfIndex(index), ..Qdisc::default() };
    for attribute in NlasIterator::new(payload.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            KIND => {
                let value = attribute.value();
                let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
                let name = value.get(..end.min(KIND_BYTES)).unwrap_or_default();
                qdisc.kind = String::from_utf8_lossy(name).into_owned();
            }
            STATS2 => {
                for part in NlasIterator::new(attribute.value()) {
                    let part = part?;
                    if part.kind() == STATS_QUEUE {
                        // struct gnet_stats_queue: qlen, backlog, drops, requeues, overlimits.
                        let at = |place: usize| word(part.value(), place * 4).unwrap_or(0);
                        qdisc.backlog_bytes = at(1);
                        qdisc.drops = at(2);
                        qdisc.overlimits = at(4);
                    }
                }
            }
            _ => {}
        }
    }
    Ok((qdisc.kind != NO_QUEUE).then_some(qdisc))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::source::ask::attribute(&mut bytes, kind, value);
        bytes
    }

    fn message(parent: u32, kind: &str) -> Vec<u8> {
        let header = [0, 7, 0x8001_0000, parent, 2].map(u32::to_ne_bytes).concat();
        let queue = [3, 1500, 42, 0, 99].map(u32::to_ne_bytes).concat();
        let name = [kind.as_bytes(), b"\0"].concat();
        let stats = attribute(STATS2, &attribute(STATS_QUEUE, &queue));
        [header, attribute(KIND, &name), stats].concat()
    }

    #[test]
    fn the_root_is_told_with_its_drops() {
        let told = qdisc(&message(ROOT, "tbf")).unwrap();
        let expected = Qdisc {
            index: IfIndex(7),
            kind: "tbf".to_owned(),
            drops: 42,
            overlimits: 99,
            backlog_bytes: 1500,
        };
        assert_eq!(told, Some(expected));
    }

    #[test]
    fn children_hooks_and_devices_without_a_queue_are_left_out() {
        for other in
            [message(0x10001, "pfifo"), message(0xffff_fff1, "clsact"), message(ROOT, "noqueue")]
        {
            assert_eq!(qdisc(&other).unwrap(), None);
        }
    }

    #[test]
    fn truncated_messages_never_panic() {
        let whole = message(ROOT, "tbf");
        for length in 0..whole.len() {
            let _ = qdisc(&whole[..length]);
        }
        assert!(qdisc(&whole[..8]).is_err());
    }
}
