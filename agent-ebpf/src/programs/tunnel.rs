//! Tunnel devices: inner packets on their way into the encapsulation and out of it.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlaywatch_ebpf::hop;

use crate::packet::{ETHERNET_BYTES, Way, count_inner};

macro_rules! programs {
    ($($name:ident: $ethernet:literal $way:ident $hop:ident;)*) => {$(
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            // SAFETY: the context that the kernel gave.
            let protocol = u16::from_be(unsafe { &*ctx.skb.skb }.protocol as u16);
            let at = if $ethernet { ETHERNET_BYTES } else { 0 };
            count_inner(&ctx, at, protocol, Way::$way, hop::$hop, None);
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
