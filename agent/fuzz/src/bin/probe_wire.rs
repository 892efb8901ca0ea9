//! The probe protocol: whatever is read says the same once it is written again.
#![no_main]

use overlaywatch::probe::wire::{
    LONGEST_BYTES, Message, READ_BYTES, Reply, Request, Status, decode, encode_reply,
    encode_request,
};
use overlaywatch_core::probing::OwnStatus;

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    let read = &packet[..packet.len().min(READ_BYTES)];
    // The beginning of a long packet, and one that claims to be too long.
    for length in [LONGEST_BYTES, LONGEST_BYTES + 1] {
        let _ = decode(read, length);
    }
    let Ok(message) = decode(read, packet.len()) else { return };
    let mut again = Vec::new();
    match &message {
        Message::Request(request) => encode_request(request, 0, &mut again),
        Message::Reply(reply) => write(reply, &mut again),
    }
    assert_eq!(decode(&again, again.len()), Ok(message));
});

fn write(reply: &Reply, out: &mut Vec<u8>) {
    let Reply { stream, seq, epoch, sent_at, dwell_ns, received, ref status } = *reply;
    let request = Request { stream, seq, epoch, sent_at, sent: Vec::new(), asks_hops: false };
    let own = status.as_ref().map_or_else(OwnStatus::default, |status| OwnStatus {
        node: status.node.clone(),
        tunnels: status.tunnels.clone(),
    });
    let status = status.as_ref().map(|status| Status {
        epoch: status.epoch,
        windows: &status.windows,
        own: &own,
        climbs: &status.climbs,
        drops: &status.drops,
    });
    encode_reply(&request, dwell_ns, received, status, LONGEST_BYTES, out);
}
