//! The node-wide object: outbound capture, attached once to the cgroup above the pods, notes of
//! kubelet's probes, and notes of what a machine's slice listens on.
#![no_std]
#![no_main]

mod bound;
mod connect;
mod ends;
mod locked;
mod maps;
mod peername;
mod probe;
mod sockops;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that this is never reached; aya-ebpf asks for it to exist.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
