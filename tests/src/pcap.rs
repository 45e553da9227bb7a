//! Reads TCP segments from a recording in the pcap format (draft-ietf-opsawg-pcap) of Ethernet frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{Context, Error, Result};

const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
const LITTLE_ENDIAN_MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];
const LINKTYPE_ETHERNET: u32 = 1;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;

/// One TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub source: SocketAddr,
    /// Whom it was for.
    pub destination: SocketAddr,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// The TCP segments of a recording, in their order. What is not TCP over IP is passed over.
///
/// # Errors
/// When the file is no pcap of Ethernet frames or ends in the middle of a packet.
pub fn segments(file: &[u8]) -> Result<Vec<Segment>> {
    if file.get(..4) != Some(&LITTLE_ENDIAN_MAGIC)
        || little_u32(file, 20) != Some(LINKTYPE_ETHERNET)
    {
        return Err(Error::step(
            "read a recording",
            "it is no pcap file of Ethernet frames",
        ));
    }
    let mut segments = Vec::new();
    let mut rest = file.get(FILE_HEADER..).unwrap_or_default();
    while !rest.is_empty() {
        let length = little_u32(rest, 8).context(|| "read a packet header")?;
        let end = PACKET_HEADER + usize::try_from(length).context(|| "read a packet length")?;
        let frame = rest
            .get(PACKET_HEADER..end)
            .context(|| "read a whole packet")?;
        segments.extend(tcp_of_frame(frame));
        rest = &rest[end..];
    }
    Ok(segments)
}

fn tcp_of_frame(frame: &[u8]) -> Option<Segment> {
    match big_u16(frame, 12)? {
        ETHERTYPE_IPV4 => tcp_of_ipv4(frame.get(14..)?),
        ETHERTYPE_IPV6 => tcp_of_ipv6(frame.get(14..)?),
        _ => None,
    }
}

fn tcp_of_ipv4(packet: &[u8]) -> Option<Segment> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let packet = packet.get(..usize::from(big_u16(packet, 2)?))?;
    if *packet.get(9)? != PROTOCOL_TCP {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes).into())
    };
    tcp(address(12)?, address(16)?, packet.get(header..)?)
}

fn tcp_of_ipv6(packet: &[u8]) -> Option<Segment> {
    let payload = packet.get(40..40 + usize::from(big_u16(packet, 4)?))?;
    if packet[6] != PROTOCOL_TCP {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes).into())
    };
    tcp(address(8)?, address(24)?, payload)
}

fn tcp(source: IpAddr, destination: IpAddr, segment: &[u8]) -> Option<Segment> {
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Segment {
        source: SocketAddr::new(source, big_u16(segment, 0)?),
        destination: SocketAddr::new(destination, big_u16(segment, 2)?),
        payload: segment.get(header..)?.to_vec(),
    })
}

fn big_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn little_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(frames: &[&[u8]]) -> Vec<u8> {
        let mut file = vec![0; FILE_HEADER];
        file[..4].copy_from_slice(&LITTLE_ENDIAN_MAGIC);
        file[20] = 1;
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend([0; 8]);
            file.extend(length);
            file.extend(length);
            file.extend(*frame);
        }
        file
    }

    fn ipv4_frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        let total = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        frame.extend([
            0x45,
            0,
            total[0],
            total[1],
            0,
            0,
            0,
            0,
            64,
            PROTOCOL_TCP,
            0,
            0,
        ]);
        frame.extend([10, 1, 0, 2, 10, 2, 0, 3]);
        frame.extend([
            0x30, 0x39, 0x3a, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0,
        ]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_segment_keeps_its_ends_and_its_payload_without_padding() {
        let mut frame = ipv4_frame(b"hi");
        frame.extend([0; 6]);
        let found = segments(&recording(&[&frame])).unwrap();
        assert_eq!(
            found,
            [Segment {
                source: "10.1.0.2:12345".parse().unwrap(),
                destination: "10.2.0.3:15008".parse().unwrap(),
                payload: b"hi".to_vec(),
            }]
        );
    }

    #[test]
    fn what_is_not_tcp_is_passed_over() {
        assert_eq!(segments(&recording(&[&[0; 60], &[]])).unwrap(), []);
    }

    #[test]
    fn a_recording_cut_in_a_packet_is_an_error() {
        let whole = recording(&[&ipv4_frame(b"hi")]);
        assert!(segments(&whole[..whole.len() - 1]).is_err());
        assert!(segments(b"not a recording").is_err());
    }
}
