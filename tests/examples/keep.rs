//! Temporary.
#![allow(clippy::unwrap_used)]
use undermesh_tests::*;
fn main() {
    let sandbox = Sandbox::enter().unwrap();
    let bed = Testbed::new(&sandbox, "keep").unwrap();
    let shop = Shop::in_mesh(&bed).map_err(|e| {bed.journal().print(); e}).unwrap();
    let _n = apps::nginx(&shop.far).unwrap();
    let _m = apps::nginx(&shop.near).unwrap();
    println!("{}", std::fs::read_to_string("/proc/self/cgroup").unwrap());
    for a in [&["list"][..], &["status"], &["certificates"], &["connections"]] {
        println!("{}", shop.first.cli(a).unwrap().text());
    }
    println!("{}", shop.first.json(&["status"]).unwrap());
    let out = shop.client.curl(shop.far.ip(Family::V4), 8080, "/peer").unwrap();
    println!("{:?}", out);
    println!("{}", shop.first.metrics().unwrap());
    println!("ready");
    std::thread::sleep(std::time::Duration::from_secs(600));
    bed.journal().print();
}
