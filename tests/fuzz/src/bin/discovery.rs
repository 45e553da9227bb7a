//! Discovery: any bytes are taken as a resource or rejected by name, and what is taken is taken again alike.
#![no_main]
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use undermesh_xds::{
    decode::Decoder,
    wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE},
};

fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::new(Arc::from(""));
    let any = |type_url: &str| prost_types::Any {
        type_url: type_url.to_owned(),
        value: bytes.to_vec(),
    };
    let address = any(ADDRESS_TYPE);
    let taken = decoder.address("fuzz", &address).is_ok();
    assert_eq!(decoder.address("fuzz", &address).is_ok(), taken);
    let policy = any(AUTHORIZATION_TYPE);
    let taken = decoder.policy("fuzz", &policy).is_ok();
    assert_eq!(decoder.policy("fuzz", &policy).is_ok(), taken);
});
