//! The wire format: what is written is read again, and nothing that is read
//! makes the decoder panic.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlaywatch::probe::wire::{
    LEAST_REQUEST_BYTES, LONGEST_BYTES, Message, READ_BYTES, Request, Status, decode, encode_reply,
    encode_request,
};
use overlaywatch_core::ladder::Window;
use overlaywatch_core::model::{Encapsulation, Mac, NodeName};
use overlaywatch_core::probing::{
    Ignored, MAX_ADVERTS, MAX_WINDOWS, OwnStatus, Stream, TunnelAdvert,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn encapsulation() -> impl Strategy<Value = Encapsulation> {
    prop_oneof![Just(Encapsulation::Ipip), any::<u16>().prop_map(Encapsulation::Vxlan)]
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![
        Just(Stream::Underlay),
        encapsulation().prop_map(Stream::Small),
        encapsulation().prop_map(Stream::Full),
    ]
}

prop_compose! {
    fn request()(
        stream in stream(),
        seq: u32,
        epoch: u64,
        sent_at: u64,
        sent in vec((stream(), any::<u32>()), 0..=MAX_WINDOWS),
    ) -> Request {
        let sent = if stream == Stream::Underlay { sent } else { Vec::new() };
        Request { stream, seq, epoch, sent_at, sent, asks_hops: false }
    }
}

prop_compose! {
    fn advert()(
        encapsulation in encapsulation(),
        vni in option::of(any::<u32>()),
        up: bool,
        address in option::of(prop_oneof![
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        ]),
        mac in option::of(any::<[u8; 6]>().prop_map(Mac)),
        mtu: u32,
    ) -> TunnelAdvert {
        TunnelAdvert { encapsulation, vni, up, address, mac, mtu }
    }
}

fn name() -> impl Strategy<Value = Option<NodeName>> {
    option::of("[a-zé0-9.-]{1,120}".prop_map(|text| text.parse().unwrap()))
}

prop_compose! {
    fn window()(highest: u32, mask: u64, count: u32) -> Window {
        Window { highest, mask, count }
    }
}

fn is_prefix<T: PartialEq>(part: &[T], whole: &[T]) -> bool {
    whole.get(..part.len()) == Some(part)
}

proptest! {
    #[test]
    fn requests_come_back(request in request(), bytes in 0_usize..9_000) {
        let mut packet = Vec::new();
        encode_request(&request, bytes, &mut packet);
        prop_assert!(packet.len() >= LEAST_REQUEST_BYTES.max(bytes));
        prop_assert!(packet.len() <= LONGEST_BYTES);
        // Only the beginning of a packet is read.
        let read = &packet[..packet.len().min(READ_BYTES)];
        prop_assert_eq!(decode(read, packet.len()), Ok(Message::Request(request)));
    }

    #[test]
    fn replies_come_back_and_are_no_longer_than_requests(
        request in request(),
        limit in LEAST_REQUEST_BYTES..700,
        dwell_ns: u64,
        received: u32,
        epoch: u64,
        windows in vec((stream(), window()), 0..=MAX_WINDOWS),
        node in name(),
        tunnels in vec(advert(), 0..=MAX_ADVERTS),
    ) {
        let own = OwnStatus { node, tunnels };
        let status = (request.stream == Stream::Underlay)
            .then_some(Status { epoch, windows: &windows, own: &own, climbs: &[], drops: &[] });
        let mut packet = Vec::new();
        encode_reply(&request, dwell_ns, received, status, limit, &mut packet);
        prop_assert!(packet.len() <= limit);
        let Ok(Message::Reply(reply)) = decode(&packet, packet.len()) else {
            panic!("{:?}", decode(&packet, packet.len()));
        };
        prop_assert_eq!(
            (reply.stream, reply.seq, reply.epoch, reply.sent_at, reply.dwell_ns, reply.received),
            (request.stream, request.seq, request.epoch, request.sent_at, dwell_ns, received)
        );
        prop_assert_eq!(reply.status.is_some(), request.stream == Stream::Underlay);
        if let Some(said) = reply.status {
            prop_assert_eq!(said.epoch, epoch);
            prop_assert!(is_prefix(&said.windows, &windows));
            prop_assert!(is_prefix(&said.tunnels, &own.tunnels));
            prop_assert!(said.node.is_none() || said.node == own.node);
            let roomy = 56 + 9 * 20 + 4 * 34 + 253;
            if limit >= roomy {
                prop_assert_eq!((said.windows, said.tunnels, said.node), (windows, own.tunnels, own.node));
            }
        }
    }

    #[test]
    fn noise_is_refused(bytes in vec(any::<u8>(), 0..READ_BYTES), longer in 0_usize..20_000) {
        prop_assert!(decode(&bytes, bytes.len() + longer).is_err());
    }

    #[test]
    fn mutations_never_panic(
        request in request(),
        windows in vec((stream(), window()), 0..=MAX_WINDOWS),
        node in name(),
        tunnels in vec(advert(), 0..=MAX_ADVERTS),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        is_reply: bool,
    ) {
        let mut packet = Vec::new();
        if is_reply {
            let own = OwnStatus { node, tunnels };
            let status = Some(Status { epoch: 1, windows: &windows, own: &own, climbs: &[], drops: &[] });
            encode_reply(&request, 1, 1, status, 700, &mut packet);
        } else {
            encode_request(&request, 100, &mut packet);
        }
        for (index, value) in changes {
            let at = index.index(packet.len());
            packet[at] = value;
        }
        packet.truncate(cut.index(packet.len() + 1));
        // What decodes encodes to something that decodes alike.
        if let Ok(Message::Request(read)) = decode(&packet, packet.len()) {
            let mut again = Vec::new();
            encode_request(&read, 0, &mut again);
            prop_assert_eq!(decode(&again, again.len()), Ok(Message::Request(read)));
        }
    }

    #[test]
    fn whatever_is_cut_off_is_missed(request in request(), cut in 4_usize..LEAST_REQUEST_BYTES) {
        let mut packet = Vec::new();
        encode_request(&request, 0, &mut packet);
        packet.truncate(cut);
        prop_assert_eq!(decode(&packet, packet.len()), Err(Ignored::Truncated));
    }
}

#[test]
fn a_whole_status_fits_into_an_underlay_probe() {
    let own = OwnStatus {
        node: Some("n".repeat(63).parse().unwrap()),
        tunnels: vec![
            TunnelAdvert {
                encapsulation: Encapsulation::Vxlan(4789),
                vni: Some(4096),
                up: true,
                address: Some("fd00::1".parse().unwrap()),
                mac: Some(Mac([1; 6])),
                mtu: 1450,
            };
            MAX_ADVERTS
        ],
    };
    let windows = [(Stream::Underlay, Window::default()); MAX_WINDOWS];
    let request = Request {
        stream: Stream::Underlay,
        seq: 1,
        epoch: 2,
        sent_at: 3,
        sent: Vec::new(),
        asks_hops: false,
    };
    let mut packet = Vec::new();
    let status = Status { epoch: 4, windows: &windows, own: &own, climbs: &[], drops: &[] };
    // An IPv6 packet of 560 bytes.
    encode_reply(&request, 5, 6, Some(status), 560 - 48, &mut packet);
    let Ok(Message::Reply(reply)) = decode(&packet, packet.len()) else { panic!("no reply") };
    let said = reply.status.unwrap();
    assert_eq!((said.windows.len(), said.tunnels, said.node), (MAX_WINDOWS, own.tunnels, own.node));
}
