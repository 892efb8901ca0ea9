//! Tunnel devices: inner packets on their way into the encapsulation and out of it.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlaywatch_ebpf::hop;

use crate::packet::{ETHERNET_BYTES, Way, count_inner};
use crate::quick::may_be_probe;

macro_rules! programs {
    ($($name:ident: $ethernet:literal $way:ident $hop:ident;)*) => {$(
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            // SAFETY: the context that the kernel gave.
            let protocol = u16::from_be(unsafe { &*ctx.skb.skb }.protocol as u16);
            let at = if $ethernet { ETHERNET_BYTES } else { 0 };
            if may_be_probe(&ctx, at, protocol) {
                look(ctx.skb.skb, at, protocol, Way::$way, hop::$hop);
            }
            // Never a verdict of our own: the next program decides.
            TC_ACT_UNSPEC
        }
    )*};
}

programs! {
    ow_tunnel_in: true In DECAPSULATED;
    ow_tunnel_out: true Out ENCAPSULATED;
    ow_tunnel_in_l3: false In DECAPSULATED;
    ow_tunnel_out_l3: false Out ENCAPSULATED;
}

/// Apart from the quick look, so that what most packets run through stays short.
#[inline(never)]
fn look(skb: *mut __sk_buff, at: usize, protocol: u16, way: Way, hop: usize) -> Option<()> {
    count_inner(&TcContext::new(skb), at, protocol, way, hop, None)
}
