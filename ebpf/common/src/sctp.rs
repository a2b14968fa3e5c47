//! SCTP (RFC 9260), as far as who translates its packets has to know it: the checksum, and what chunks say of an
//! association.
//!
//! The checksum is CRC32c over the whole packet and covers no addresses, so an exchange of addresses leaves it as it is.
//! After one of ports it follows without a look at the rest: CRC is linear over GF(2), so the difference of two packets'
//! checksums is that of their difference, which is four octets and then only zeros. An octet of zero is a multiplication by
//! x^8, and so many of them are one by a power of x that a table has.
//!
//! An association is judged as any flow is, from what each side has said; sides that said something are told by their
//! verification tags where that would end the association (RFC 9260 8.5).

use crate::Flow;

/// Of the common header: two ports, the verification tag, the checksum.
pub const HEADER_BYTES: usize = 12;
pub const TAG_AT: usize = 4;
pub const CHECKSUM_AT: usize = 8;

/// Chunks that say something of their association, each a bit; others are 0.
pub const INIT: u8 = 0x01;
pub const INIT_ACK: u8 = 0x02;
pub const COOKIE_ECHO: u8 = 0x04;
pub const COOKIE_ACK: u8 = 0x08;
pub const SHUTDOWN: u8 = 0x10;
pub const SHUTDOWN_ACK: u8 = 0x20;
pub const SHUTDOWN_COMPLETE: u8 = 0x40;
pub const ABORT: u8 = 0x80;
/// Those that begin the end.
pub const CLOSING: u8 = SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE | ABORT;

/// The type of chunks that carry data, behind which there is no other kind (RFC 9260 6.10).
pub const DATA_TYPE: u8 = 0;
/// The flag of ABORT and SHUTDOWN COMPLETE by which the tag is the sender's own (RFC 9260 8.5.1).
pub const REFLECTED: u8 = 0x01;

/// The bits of types of chunks (RFC 9260 3.2).
static BITS: [u8; 16] = [
    0,
    INIT,
    INIT_ACK,
    0,
    0,
    0,
    ABORT,
    SHUTDOWN,
    SHUTDOWN_ACK,
    0,
    COOKIE_ECHO,
    COOKIE_ACK,
    0,
    0,
    SHUTDOWN_COMPLETE,
    0,
];

/// The bit of a chunk's type. From a table, as each branch would be a path to verify.
#[inline(always)]
pub fn bit(kind: u8) -> u8 {
    if kind as usize >= BITS.len() { 0 } else { BITS[(kind & 15) as usize] }
}

const NAMES: [(u8, &str); 8] = [
    (INIT, "INIT"),
    (INIT_ACK, "INIT ACK"),
    (COOKIE_ECHO, "COOKIE ECHO"),
    (COOKIE_ACK, "COOKIE ACK"),
    (SHUTDOWN, "SHUTDOWN"),
    (SHUTDOWN_ACK, "SHUTDOWN ACK"),
    (SHUTDOWN_COMPLETE, "SHUTDOWN COMPLETE"),
    (ABORT, "ABORT"),
];

/// The chunks of the bits, in the words of RFC 9260.
pub fn names(said: u8) -> impl Iterator<Item = &'static str> {
    NAMES.iter().filter(move |(bit, _)| said & bit != 0).map(|(_, name)| *name)
}

/// The verification tags that each side of a flow asked for, in network order; 0, which is none, where that was not seen.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tags {
    pub by_client: u32,
    pub by_backend: u32,
}

impl Tags {
    /// Whether a packet to who asked for `asked`, from who asked for `own`, may end an association. Where no tag is known,
    /// any is right.
    #[inline(always)]
    pub const fn admits(asked: u32, own: u32, tag: u32, is_reflected: bool) -> bool {
        let wanted = if is_reflected { own } else { asked };
        wanted == 0 || tag == wanted
    }
}

/// The states of an association (RFC 9260 4), as who stands between tells them; those of the end from its client's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Begun, or the begin was not seen and nobody has answered.
    CookieWait,
    CookieEchoed,
    Established,
    ShutdownSent,
    ShutdownReceived,
    ShutdownAckSent,
    Closed,
    Aborted,
}

impl State {
    /// From what both sides said.
    pub const fn of(forward: &Flow, reverse: &Flow) -> Self {
        let all = forward.said | reverse.said;
        if all & ABORT != 0 {
            Self::Aborted
        } else if all & SHUTDOWN_COMPLETE != 0 {
            Self::Closed
        } else if all & SHUTDOWN_ACK != 0 {
            Self::ShutdownAckSent
        } else if forward.said & SHUTDOWN != 0 {
            Self::ShutdownSent
        } else if reverse.said & SHUTDOWN != 0 {
            Self::ShutdownReceived
        } else if all & COOKIE_ACK != 0 {
            Self::Established
        } else if all & COOKIE_ECHO != 0 {
            Self::CookieEchoed
        } else if all & (INIT | INIT_ACK) == 0 && reverse.seen != 0 {
            // Under way before it came by here.
            Self::Established
        } else {
            Self::CookieWait
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::CookieWait => "cookie-wait",
            Self::CookieEchoed => "cookie-echoed",
            Self::Established => "established",
            Self::ShutdownSent => "shutdown-sent",
            Self::ShutdownReceived => "shutdown-received",
            Self::ShutdownAckSent => "shutdown-ack-sent",
            Self::Closed => "closed",
            Self::Aborted => "aborted",
        }
    }

    /// How long an association may be silent before it is forgotten.
    ///
    /// One that lives is heard every 120 s at least: a heartbeat comes 30 s (HB.interval) and one and a half times the
    /// retransmission timeout after the last, which is 60 s at most (RTO.Max; RFC 9260 8.3, 16). What waits for an answer
    /// asks again within 60 s. The kernel's own tracking has 210 s and 10 s too, and 3 s where something is asked for: it
    /// would lose those whose second question comes later.
    pub const fn timeout_seconds(self) -> u64 {
        match self {
            Self::Established => 210,
            Self::CookieWait
            | Self::CookieEchoed
            | Self::ShutdownSent
            | Self::ShutdownReceived
            | Self::ShutdownAckSent => 60,
            Self::Closed | Self::Aborted => 10,
        }
    }
}

/// The polynomial of CRC32c, the lowest power in the highest bit, and x^32 left out (RFC 9260 A).
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^0, and x^8.
const ONE: u32 = 1 << 31;
const OCTET: u32 = ONE >> 8;

/// x^(8n) for every n below 256, and x^(8n * 256).
static POWERS: [[u32; 256]; 2] = {
    let low = powers(OCTET);
    [low, powers(product(low[255], OCTET))]
};

const fn powers(of: u32) -> [u32; 256] {
    let mut powers = [ONE; 256];
    let mut n = 1;
    while n < 256 {
        powers[n] = product(powers[n - 1], of);
        n += 1;
    }
    powers
}

/// The product of two polynomials, modulo that of CRC32c. Without branches, each of which would be a path to verify.
#[inline(always)]
const fn product(a: u32, b: u32) -> u32 {
    let (mut a, mut b) = (a, b);
    let mut product = 0;
    let mut n = 0;
    while n < 32 {
        product ^= b & 0u32.wrapping_sub(a >> 31);
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
        n += 1;
    }
    product
}

/// What a difference of the first four octets of a packet of `length` octets is in its checksum; both as little-endian
/// words. `length` is below 65,536.
#[inline(always)]
pub fn difference(octets: u32, length: u16) -> u32 {
    let [low, high] = length.to_le_bytes();
    product(product(octets, POWERS[0][low as usize]), POWERS[1][high as usize])
}

/// The checksum of a packet, whose own checksum has to be zero, as the little-endian word that stands in its header.
pub fn checksum(packet: &[u8]) -> u32 {
    !packet.iter().fold(u32::MAX, |crc, octet| with_octet(crc, *octet))
}

const fn with_octet(crc: u32, octet: u8) -> u32 {
    let mut crc = crc ^ octet as u32;
    let mut n = 0;
    while n < 8 {
        crc = (crc >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(crc & 1));
        n += 1;
    }
    crc
}

const _: () = assert!(size_of::<Tags>() == 8);

crate::pod!(Tags);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, BackendId, Direction, Port, Protocol, ServiceId, Tuple, timeout_seconds};

    /// So that a failure can be had again.
    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 32) as u32
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of the catalogue of CRCs, and the vectors of RFC 3720 B.4.
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_checksum_follows_its_ports_in_packets_of_every_length() {
        let mut state = 9260;
        for _ in 0..4 {
            let [before, after] = [random(&mut state), random(&mut state)];
            let crc = |word: u32| word.to_le_bytes().into_iter().fold(u32::MAX, with_octet);
            let [mut old, mut new] = [crc(before), crc(after)];
            for length in 4..=u16::MAX {
                // Complements on both sides cancel.
                assert_eq!(old ^ difference(before ^ after, length), new, "{before:x} {after:x} {length}");
                let octet = random(&mut state) as u8;
                [old, new] = [with_octet(old, octet), with_octet(new, octet)];
            }
        }
    }

    #[test]
    fn states_and_their_timeouts_follow_what_both_sides_said() {
        let none = Address::UNSPECIFIED;
        let tuple = Tuple::new(none, Port::new(1), none, Port::new(2), Protocol::SCTP);
        let of = |direction, said| {
            let mut flow = Flow::new(direction, tuple, ServiceId(1), BackendId(1), false, 0);
            (flow.said, flow.seen) = (said, 1);
            flow
        };
        for (client, backend, state, seconds) in [
            (INIT, 0, State::CookieWait, 60),
            (INIT, INIT_ACK, State::CookieWait, 60),
            (INIT | COOKIE_ECHO, INIT_ACK, State::CookieEchoed, 60),
            (INIT | COOKIE_ECHO, INIT_ACK | COOKIE_ACK, State::Established, 210),
            (0, 0, State::Established, 210),
            (COOKIE_ECHO | SHUTDOWN, COOKIE_ACK, State::ShutdownSent, 60),
            (COOKIE_ECHO, COOKIE_ACK | SHUTDOWN, State::ShutdownReceived, 60),
            (COOKIE_ECHO | SHUTDOWN, COOKIE_ACK | SHUTDOWN_ACK, State::ShutdownAckSent, 60),
            (SHUTDOWN | SHUTDOWN_COMPLETE, SHUTDOWN_ACK, State::Closed, 10),
            (INIT, ABORT, State::Aborted, 10),
            (COOKIE_ECHO | SHUTDOWN | ABORT, SHUTDOWN_ACK, State::Aborted, 10),
        ] {
            let (forward, reverse) = (of(Direction::Forward, client), of(Direction::Reverse, backend));
            assert_eq!(State::of(&forward, &reverse), state, "{client:x} {backend:x}");
            assert_eq!(timeout_seconds(Protocol::SCTP, &forward, &reverse), seconds, "{state:?}");
            let lives = matches!(state, State::CookieWait | State::CookieEchoed | State::Established);
            assert_eq!(forward.is_closing() || reverse.is_closing(), !lives, "{state:?}");
        }
        let mut unanswered = of(Direction::Reverse, 0);
        unanswered.seen = 0;
        assert_eq!(State::of(&of(Direction::Forward, 0), &unanswered), State::CookieWait);
    }

    #[test]
    fn only_who_knows_the_tag_ends_an_association() {
        let (asked, own) = (7, 9);
        assert!(Tags::admits(asked, own, 7, false) && Tags::admits(asked, own, 9, true));
        assert!(!Tags::admits(asked, own, 9, false) && !Tags::admits(asked, own, 7, true));
        assert!(!Tags::admits(asked, own, 0, false));
        assert!(Tags::admits(0, own, 1, false) && Tags::admits(asked, 0, 1, true), "none was seen");
    }
}
