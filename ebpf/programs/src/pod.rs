//! The per-pod object: inbound capture, attached to one pod's network namespace.
//!
//! Each pod has an instance of its own, with a map of its own, so that one pod's listener can never
//! be handed the connections of another.
#![no_std]
#![no_main]

mod locked;
mod lookup;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that this is never reached; aya-ebpf asks for it to exist.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
