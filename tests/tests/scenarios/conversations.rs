//! The shape of a conversation survives: who speaks first, and who stops speaking first.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Result, Shop, Testbed, tcp};

use crate::Scenario;

/// A server's greeting that comes later than this waits for something it should not.
const PROMPT: Duration = Duration::from_secs(1);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "a_client_that_stops_sending_still_receives",
        client_stops_first,
    ),
    Scenario::new(
        "a_server_that_stops_sending_still_receives",
        server_stops_first,
    ),
    Scenario::new(
        "a_server_that_speaks_first_is_heard_at_once",
        server_speaks_first,
    ),
];

fn client_stops_first(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _servers = [
        tcp::Server::start(&shop.far, NGINX_PORT, answer_after_the_end)?,
        tcp::Server::start(&shop.near, NGINX_PORT, answer_after_the_end)?,
    ];
    for family in Family::BOTH {
        for target in [shop.far_service(family), shop.near_service(family)] {
            let answer = shop.client.run(|| tcp::ask(target, b"one two three"))?;
            assert_eq!(answer.unwrap(), b"13 bytes", "{target}");
        }
    }
    Ok(())
}

/// Answers only once the client has closed its side.
fn answer_after_the_end(mut stream: TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    stream.read_to_end(&mut request)?;
    write!(stream, "{} bytes", request.len())
}

fn server_stops_first(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let (seen, heard) = std::sync::mpsc::channel();
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, move |mut stream| {
        stream.write_all(b"done")?;
        stream.shutdown(Shutdown::Write)?;
        let mut late = String::new();
        stream.read_to_string(&mut late)?;
        seen.send(late).map_err(io::Error::other)
    })?;
    for family in Family::BOTH {
        let target = shop.far_service(family);
        let end = shop.client.run(|| -> io::Result<String> {
            let mut stream = tcp::connect(target)?;
            let mut end = String::new();
            stream.read_to_string(&mut end)?;
            for word in ["still ", "here"] {
                stream.write_all(word.as_bytes())?;
            }
            Ok(end)
        })?;
        assert_eq!(end.unwrap(), "done", "{family}");
        assert_eq!(
            heard.recv_timeout(tcp::PATIENCE).unwrap(),
            "still here",
            "{family}"
        );
    }
    Ok(())
}

fn server_speaks_first(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::greet("220 welcome\r\n"))?;
    for family in Family::BOTH {
        let target = shop.far_service(family);
        let start = Instant::now();
        let greeting = shop.client.run(|| -> io::Result<[u8; 13]> {
            let mut greeting = [0; 13];
            tcp::connect(target)?.read_exact(&mut greeting)?;
            Ok(greeting)
        })?;
        assert_eq!(&greeting.unwrap(), b"220 welcome\r\n");
        assert!(
            start.elapsed() < PROMPT,
            "{family}: after {:?}",
            start.elapsed()
        );
    }
    Ok(())
}
