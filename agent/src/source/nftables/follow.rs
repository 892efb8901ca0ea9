//! Notifications of nftables: which tables a transaction changed, and who made it.

use std::collections::BTreeSet;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use overlaywatch_core::model::{Committer, Family};

use super::dump::NEW_GENERATION;
use super::{SourceError, translate, wire};
use translate::SUBSYSTEM;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Room for the notifications of a tick, bytes: those of about ten thousand rules; more of
/// them are an overrun, after which all is dumped. It is taken only while they wait.
/// Without CAP_NET_ADMIN it is no more than net.core.rmem_max (socket(7)).
const ROOM_BYTES: usize = 16 << 20;
/// Datagrams that are read in one go: a controller that commits without pause
/// must not keep this thread for ever.
const MOST_DATAGRAMS: u32 = 4096;
/// Changed tables that are told apart.
const MOST_TABLES: usize = 16;
/// What tables, chains and rules are made, changed and deleted by
/// (enum nf_tables_msg_types), as bits by message type. Sets and their members
/// come and go all the time, and nothing is read of them.
const OF_INTEREST: u64 = 1 | 1 << 3 | 1 << 6 | DELETIONS;
/// `NFT_MSG_DELTABLE`, `_DELCHAIN`, `_DELRULE`, and `NFT_MSG_DESTROY...` of the same.
const DELETIONS: u64 = 1 << 2 | 1 << 5 | 1 << 8 | 1 << 26 | 1 << 27 | 1 << 28;

/// What changed.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Nobody knows what: everything has to be read.
    pub(super) all: bool,
    /// Tables that changed.
    pub(super) tables: BTreeSet<(Family, String)>,
    /// The latest generation that was told.
    pub(super) generation: Option<u32>,
    /// Who made the transaction that deleted most.
    pub(super) deleted_by: Option<Committer>,
    most_deletions: u32,
    /// Deletions of the transaction that is being told.
    deletions: u32,
    /// It is not told to its end, which says who made it.
    pub(super) is_open: bool,
    /// Notifications were lost, after all that still waits: from then on none is
    /// kept until nothing waits any more (NETLINK_S_CONGESTED, net/netlink/af_netlink.c).
    has_lost: bool,
}

impl Touched {
    /// What changed so far is known now.
    pub(super) fn forget(&mut self) {
        let Self { generation, deletions, is_open, has_lost, .. } = *self;
        *self = Self { generation, deletions, is_open, has_lost, ..Self::default() };
    }

    /// Notifications were lost.
    fn lose(&mut self) {
        (self.all, self.has_lost) = (true, true);
    }

    /// Nothing waits any more. The end of a transaction that was lost does not come:
    /// what it deleted is not of whoever commits next.
    fn end(&mut self) {
        if std::mem::take(&mut self.has_lost) {
            (self.deletions, self.is_open) = (0, false);
        }
    }
}

/// The socket that notifications come to.
#[derive(Debug)]
pub(super) struct Follower(Socket);

impl Follower {
    /// Begins to listen.
    pub(super) fn join() -> Result<Self, SourceError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            if setsockopt(&socket, sockopt::RcvBufForce, &ROOM_BYTES).is_err() {
                setsockopt(&socket, sockopt::RcvBuf, &ROOM_BYTES)?;
            }
            socket.add_membership(GROUP)?;
            Ok(socket)
        };
        open().map(Self).map_err(|e| SourceError::io("listening to changes of nftables", e))
    }

    /// Takes in what has come.
    pub(super) fn drain(&mut self, touched: &mut Touched) -> Result<(), SourceError> {
        let mut buffer: Option<Box<[u8]>> = None;
        for _ in 0..MOST_DATAGRAMS {
            let received = match &mut buffer {
                Some(buffer) => wire::receive(&self.0, buffer, libc::MSG_DONTWAIT).map(Some),
                // As a rule there is nothing: no room is made before something comes.
                none => self.peek().map(|()| {
                    *none = Some(wire::buffer());
                    None
                }),
            };
            match received {
                Ok(datagram) => digest(datagram.unwrap_or_default(), touched)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    touched.end();
                    return Ok(());
                }
                // A peek takes the error away, too.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => touched.lose(),
                Err(error) => {
                    return Err(SourceError::io("listening to changes of nftables", error));
                }
            }
        }
        touched.all = true;
        Ok(())
    }

    /// Whether something has come, as an error otherwise.
    fn peek(&self) -> io::Result<()> {
        let mut nothing = [0; 0];
        self.0.recv(&mut &mut nothing[..], libc::MSG_DONTWAIT | libc::MSG_PEEK).map(drop)
    }
}

fn digest(datagram: &[u8], touched: &mut Touched) -> Result<(), SourceError> {
    let malformed = |reason: &dyn std::fmt::Display| SourceError::Malformed {
        what: "listening to changes of nftables".to_owned(),
        reason: reason.to_string(),
    };
    for message in wire::messages(datagram) {
        let message = message.map_err(|error| malformed(&error))?;
        if message.kind == NEW_GENERATION {
            let told = translate::generation(message.payload).map_err(|e| malformed(&e))?;
            touched.generation = Some(told.id);
            touched.is_open = false;
            let deletions = std::mem::take(&mut touched.deletions);
            if deletions > touched.most_deletions {
                (touched.most_deletions, touched.deleted_by) = (deletions, told.by);
            }
            continue;
        }
        let bit = match message.kind.checked_sub(SUBSYSTEM) {
            Some(kind @ 0..64) => 1_u64 << kind,
            _ => continue,
        };
        if bit & OF_INTEREST == 0 {
            continue;
        }
        touched.is_open = true;
        touched.deletions = touched.deletions.saturating_add(u32::from(bit & DELETIONS != 0));
        let table = translate::table_of(message.payload).map_err(|error| malformed(&error))?;
        let Some((family, table)) = table.filter(|_| !touched.all) else { continue };
        // Most messages of a transaction are about the same table.
        let is_known = touched.tables.last().is_some_and(|(f, t)| *f == family && *t == table);
        if !is_known {
            // By a name that cannot be written the kernel cannot be asked.
            touched.all |= !translate::is_exact(&table);
            touched.tables.insert((family, table.into_owned()));
            touched.all |= touched.tables.len() > MOST_TABLES;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message about a table of IPv4.
    fn about(kind: u16, table: &str) -> Vec<u8> {
        let mut name = [table.as_bytes(), b"\0"].concat();
        let length = u16::try_from(name.len() + 4).unwrap();
        name.resize(name.len().next_multiple_of(4), 0);
        let attribute = [&length.to_ne_bytes(), &1_u16.to_ne_bytes(), name.as_slice()].concat();
        message(SUBSYSTEM | kind, 2, &attribute)
    }

    fn committed(id: u32, pid: u32, name: &str) -> Vec<u8> {
        let number = |kind: u16, value: u32| {
            [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_be_bytes()].concat()
        };
        let length = u16::try_from(name.len() + 4).unwrap().to_ne_bytes();
        let text = [&length, &3_u16.to_ne_bytes(), name.as_bytes()].concat();
        message(NEW_GENERATION, 0, &[number(1, id), number(2, pid), text].concat())
    }

    fn message(kind: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(20 + attributes.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attributes);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn told(messages: &[Vec<u8>]) -> Touched {
        let mut touched = Touched::default();
        digest(&messages.concat(), &mut touched).unwrap();
        touched
    }

    #[test]
    fn the_one_who_deleted_most_is_remembered() {
        let touched = told(&[
            about(8, "nat"),
            committed(5, 70, "kube-proxy"),
            about(8, "filter"),
            about(5, "filter"),
            about(2, "filter"),
            committed(6, 71, "nft"),
            about(6, "nat"),
            committed(7, 72, "felix"),
        ]);
        assert_eq!(touched.deleted_by.unwrap().name, "nft");
        assert_eq!(touched.generation, Some(7));
        let names: Vec<_> = touched.tables.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["filter", "nat"]);
        assert!(!touched.all);
    }

    #[test]
    fn what_was_deleted_before_a_gap_is_not_of_the_next_one() {
        // The end of this transaction is lost.
        let mut touched = told(&[about(8, "nat"), about(8, "filter")]);
        touched.lose();
        assert!(touched.all && touched.is_open);
        // It waited when that was noticed.
        digest(&about(8, "filter"), &mut touched).unwrap();
        touched.forget();
        touched.end();
        assert!(!touched.is_open);
        digest(&committed(6, 70, "kube-proxy"), &mut touched).unwrap();
        assert_eq!(touched.deleted_by, None);
        // Without a gap nothing is forgotten between two looks.
        let mut touched = told(&[about(8, "nat")]);
        touched.forget();
        touched.end();
        digest(&committed(6, 70, "kube-proxy"), &mut touched).unwrap();
        assert!(touched.deleted_by.is_some() && !touched.is_open);
    }

    #[test]
    fn members_of_sets_touch_no_table() {
        // NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM.
        let touched = told(&[about(12, "nat"), about(14, "nat"), committed(8, 1, "x")]);
        assert!(touched.tables.is_empty() && touched.deleted_by.is_none());
        assert_eq!(touched.generation, Some(8));
    }

    #[test]
    fn too_many_tables_are_not_told_apart() {
        let many: Vec<_> = (0..100).map(|n| about(6, &format!("t{n}"))).collect();
        let touched = told(&many);
        assert!(touched.all && touched.tables.len() == MOST_TABLES + 1);
    }

    #[test]
    fn a_table_that_cannot_be_asked_for_by_name_is_read_with_all() {
        let mut odd = about(6, "odd");
        // Its last letter: header, family, the attribute's own header, "od".
        odd[26] = 0xff;
        let touched = told(&[odd]);
        assert!(touched.all && !told(&[about(6, "odd")]).all);
    }

    #[test]
    fn what_is_done_with_is_forgotten() {
        let mut touched = told(&[about(8, "nat"), committed(5, 70, "x")]);
        touched.forget();
        assert!(touched.tables.is_empty() && touched.deleted_by.is_none());
        assert_eq!(touched.generation, Some(5));
    }
}
