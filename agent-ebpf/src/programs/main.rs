//! The programs that count probes and traffic in the kernel. They read packets
//! and never change, drop or redirect one, and they send no event to user space.

#![no_std]
#![no_main]
// core has no atomic addition for a target without compare-and-swap.
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "see above")]
#![allow(missing_docs, unreachable_pub, reason = "a program is known by its section and its file")]

mod drops;
mod maps;
mod packet;
mod quick;
mod traffic;
mod tunnel;
mod underlay;

/// Helpers that read kernel memory are for programs under a licence that is
/// compatible with the GPL (kernel/bpf/syscall.c); MIT is.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
