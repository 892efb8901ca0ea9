//! Probes as an agent sends and answers them.

use anyhow::Result;
use overlaywatch::probe::echo::Form;
use overlaywatch::probe::wire::{
    LEAST_REQUEST_BYTES, Request, Status, encode_reply, encode_request,
};
use overlaywatch_core::kernel::DropSite;
use overlaywatch_core::ladder::{Climb, HopWindows, Window};
use overlaywatch_core::model::{Encapsulation, Mac};
use overlaywatch_core::probing::{OwnStatus, ProbeDrop, Stream, TunnelAdvert};

use crate::Seeds;

/// The epoch that the echo target knows as its own.
const EPOCH: u64 = 0x0102_0304_0506_0708;

pub(crate) fn write() -> Result<()> {
    wire()?;
    echo()
}

fn wire() -> Result<()> {
    let mut seeds = Seeds::of("probe_wire")?;
    let vxlan = Encapsulation::Vxlan(8472);
    let small = Stream::Small(vxlan);
    let own = OwnStatus { node: Some("node-b".parse()?), tunnels: adverts() };
    let window = Window { highest: 9, mask: 0x1fd, count: 8 };
    let windows = [(Stream::Underlay, window), (small, window)];
    let seen = HopWindows {
        encapsulated: Some(window),
        left_nic: None,
        reached_nic: Some(window),
        decapsulated: Some(Window::default()),
    };
    let climbs =
        [(small, Climb { requests: seen, replies: seen, nic_ms: 9_000, tunnel_ms: 1_000 })];
    let site = DropSite {
        reason: Some("VXLAN_VNI_NOT_FOUND".to_owned()),
        function: Some("vxlan_rcv".to_owned()),
        device: Some("eth0".to_owned()),
    };
    let drops = [ProbeDrop { stream: small, reply: true, packets: 3, site }];
    let mut packet = Vec::new();
    for stream in [Stream::Underlay, small, Stream::Full(Encapsulation::Ipip)] {
        let is_underlay = stream == Stream::Underlay;
        let sent = if is_underlay { vec![(Stream::Underlay, 9), (small, 7)] } else { Vec::new() };
        let asks_hops = is_underlay;
        let request = Request { stream, seq: 10, epoch: EPOCH, sent_at: 1_000, sent, asks_hops };
        encode_request(&request, LEAST_REQUEST_BYTES, &mut packet);
        seeds.add("request", &packet)?;
        let status = is_underlay.then_some(Status {
            epoch: 2,
            windows: &windows,
            own: &own,
            climbs: &climbs,
            drops: &drops,
        });
        encode_reply(&request, 48_000, 8, status, 512, &mut packet);
        seeds.add("reply", &packet)?;
    }
    Ok(())
}

fn adverts() -> Vec<TunnelAdvert> {
    let advert = TunnelAdvert {
        encapsulation: Encapsulation::Vxlan(8472),
        vni: Some(1),
        up: true,
        address: Some([10, 42, 2, 0].into()),
        mac: Some(Mac([0x0e, 0x42, 0, 0, 0, 2])),
        mtu: 1_450,
    };
    let ipip = TunnelAdvert {
        encapsulation: Encapsulation::Ipip,
        vni: None,
        address: Some([0xfd, 0, 0, 0, 0, 0, 0, 1].into()),
        mac: None,
        ..advert
    };
    vec![advert, ipip]
}

/// Replies as each kind of socket delivers them.
fn echo() -> Result<()> {
    let mut seeds = Seeds::of("probe_echo")?;
    for (name, v6, raw, reply) in [
        ("v4", false, false, 0),
        ("v4-raw", false, true, 0),
        ("v6", true, false, 129),
        ("v6-raw", true, true, 129),
    ] {
        let mut packet = Vec::new();
        Form::new(v6, raw, EPOCH).write(0x0001_0203, 1_000, 0, &mut packet);
        packet[0] = reply;
        if raw && !v6 {
            let mut header = vec![0; 20];
            header[0] = 0x45;
            packet.splice(0..0, header);
        }
        seeds.add(name, &packet)?;
    }
    Ok(())
}
