//! What is made of the cells: an outcome each, and the whole as JSON.

use std::net::IpAddr;

use serde::Serialize;

use super::{Cell, Cells, Method, Size};

/// What became of the packets of one method and size in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All arrived.
    Passes,
    /// Some arrived.
    Lossy,
    /// The sender's own kernel refused to send them: a filter, a route, a size.
    NotSent,
    /// They reached the receiver's NIC, and its own filters took them.
    Refused,
    /// They left, and none was seen at the receiver's NIC.
    Lost,
    /// Nobody sent any.
    NotTried,
}

/// One cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Passage {
    /// What became of them.
    pub outcome: Outcome,
    /// Outer bytes of each packet.
    pub bytes: u16,
    /// Packets that the sender's kernel took.
    pub sent: u32,
    /// Packets that were seen at the receiver's NIC.
    pub reached: u32,
    /// Packets that arrived; plain ones are for pods, so the NIC is all.
    pub arrived: u32,
    /// With what error (errno) the sender's kernel refused one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<u8>,
}

/// Both sizes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Direction {
    /// Small packets.
    pub small: Passage,
    /// Packets of the sender's underlay MTU.
    pub full: Passage,
}

/// One method, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The method's name.
    pub encapsulation: &'static str,
    /// Which it is.
    #[serde(skip)]
    pub method: Method,
    /// From this node to the other one.
    pub outbound: Direction,
    /// From the other one to this node.
    pub inbound: Direction,
}

/// What passes between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// This node's underlay address.
    pub node: IpAddr,
    /// The other node's.
    pub peer: IpAddr,
    /// This node's underlay MTU.
    pub mtu: u16,
    /// The other node's.
    pub peer_mtu: u16,
    /// What was asked for, in the order of the table.
    pub encapsulations: Vec<Row>,
}

impl Report {
    /// Joins what this node's end and the other's counted, for the methods in `wanted`.
    #[must_use]
    pub fn new(
        (node, mtu, own): (IpAddr, u16, &Cells),
        (peer, peer_mtu, other): (IpAddr, u16, &Cells),
        wanted: u8,
    ) -> Self {
        let methods = Method::ALL.into_iter().filter(|method| method.bit() & wanted != 0);
        let encapsulations = methods
            .map(|method| Row {
                encapsulation: method.slug(),
                method,
                outbound: direction(method, mtu, own, other),
                inbound: direction(method, peer_mtu, other, own),
            })
            .collect();
        Self { node, peer, mtu, peer_mtu, encapsulations }
    }

    /// Whether everything that was tried arrived.
    #[must_use]
    pub fn passes(&self) -> bool {
        let mut passages = self.encapsulations.iter().flat_map(|row| {
            [row.outbound.small, row.outbound.full, row.inbound.small, row.inbound.full]
        });
        passages.all(|passage| matches!(passage.outcome, Outcome::Passes | Outcome::NotTried))
    }
}

fn direction(method: Method, mtu: u16, sender: &Cells, receiver: &Cells) -> Direction {
    let of = |size: Size, bytes: u16| {
        let cell = |cells: &Cells| cells[method.index()][size.index()];
        passage(method, bytes, cell(sender), cell(receiver))
    };
    Direction { small: of(Size::Small, super::packet::SMALL_BYTES), full: of(Size::Full, mtu) }
}

fn passage(method: Method, bytes: u16, sender: Cell, receiver: Cell) -> Passage {
    let arrived = match method {
        Method::Plain => receiver.reached,
        _ => receiver.delivered,
    };
    let (sent, reached, arrived) =
        (sender.sent.count_ones(), receiver.reached.count_ones(), arrived.count_ones());
    let outcome = match (sent, arrived) {
        (0, _) if sender.error != 0 => Outcome::NotSent,
        (0, _) => Outcome::NotTried,
        (_, 0) if reached > 0 => Outcome::Refused,
        (_, 0) => Outcome::Lost,
        // A round that the kernel refused is missing, too.
        _ if arrived >= sent && sender.error == 0 => Outcome::Passes,
        _ => Outcome::Lossy,
    };
    let errno = Some(sender.error).filter(|error| *error != 0);
    Passage { outcome, bytes, sent, reached, arrived, errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(sent: u8, error: u8) -> Cell {
        Cell { sent, error, ..Cell::default() }
    }

    fn came(reached: u8, delivered: u8) -> Cell {
        Cell { reached, delivered, ..Cell::default() }
    }

    #[test]
    fn each_fate_has_its_outcome() {
        let of = |method, from, to| passage(method, 128, from, to).outcome;
        let udp = Method::Geneve;
        assert_eq!(of(udp, sent(0x1f, 0), came(0x1f, 0x1f)), Outcome::Passes);
        assert_eq!(of(udp, sent(0x1f, 0), came(0x1f, 0x0f)), Outcome::Lossy);
        assert_eq!(of(udp, sent(0x0f, 105), came(0x0f, 0x0f)), Outcome::Lossy);
        assert_eq!(of(udp, sent(0x1f, 0), came(0x1f, 0)), Outcome::Refused);
        assert_eq!(of(udp, sent(0x1f, 0), came(0, 0)), Outcome::Lost);
        assert_eq!(of(udp, sent(0, 1), came(0, 0)), Outcome::NotSent);
        assert_eq!(of(udp, sent(0, 0), came(0, 0)), Outcome::NotTried);
        // Pods are beyond the node's own delivery.
        assert_eq!(of(Method::Plain, sent(0x1f, 0), came(0x1f, 0)), Outcome::Passes);
    }

    #[test]
    fn each_direction_is_joined_from_its_own_two_ends() {
        let (mut own, mut other) = (Cells::default(), Cells::default());
        for size in Size::ALL {
            // Outbound all is lost, inbound all arrives.
            own[Method::Ipip.index()][size.index()] =
                Cell { sent: 0x1f, error: 0, reached: 0x1f, delivered: 0x1f };
            other[Method::Ipip.index()][size.index()] = sent(0x1f, 0);
        }
        let [a, b] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let report = Report::new((a, 1_500, &own), (b, 9_000, &other), Method::Ipip.bit());
        assert_eq!(report.encapsulations.len(), 1);
        let row = report.encapsulations[0];
        assert_eq!((row.outbound.full.outcome, row.outbound.full.bytes), (Outcome::Lost, 1_500));
        assert_eq!((row.inbound.full.outcome, row.inbound.full.bytes), (Outcome::Passes, 9_000));
        assert!(!report.passes());
        let nothing = Report::new((a, 1_500, &own), (b, 9_000, &other), Method::Plain.bit());
        assert!(nothing.passes());
    }
}
