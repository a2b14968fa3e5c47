use proptest::prelude::*;

use super::*;

/// State Up, Poll, multiplier 3, discriminators 1 and 2, 100 ms both ways, as RFC 5880 section 4.1 draws it.
const UP: [u8; LENGTH] =
    [0x20, 0xe0, 3, 24, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0, 0, 0, 0, 0];

#[test]
fn a_packet_is_read_as_it_is_drawn_and_written_the_same() {
    let packet = Packet::decode(&UP).expect("a packet");
    let expected = Packet {
        state: State::Up,
        poll: true,
        detect_multiplier: 3,
        my_discriminator: 1,
        your_discriminator: 2,
        desired_min_tx: 100_000,
        required_min_rx: 100_000,
        ..Packet::default()
    };
    assert_eq!(packet, expected);
    assert_eq!(packet.encode(), UP);
}

/// What is wrong with a packet, made from a good one.
fn malformed() -> Vec<(&'static str, Vec<u8>, Refusal)> {
    let with = |at: usize, octet: u8| {
        let mut octets = UP.to_vec();
        octets[at] = octet;
        octets
    };
    vec![
        ("nothing at all", Vec::new(), Refusal::Truncated),
        ("one octet too few", UP[..23].to_vec(), Refusal::Truncated),
        ("version 0, of the drafts", with(0, 0), Refusal::Version),
        ("version 2", with(0, 0x40), Refusal::Version),
        ("Length 0", with(3, 0), Refusal::LengthBelowMinimum),
        ("Length 23", with(3, 23), Refusal::LengthBelowMinimum),
        ("authentication without its section", with(1, 0xe4), Refusal::LengthBelowMinimum),
        ("Length beyond the datagram", with(3, 25), Refusal::LengthBeyondPayload),
        ("Length 255", with(3, 255), Refusal::LengthBeyondPayload),
        ("Detect Mult 0", with(2, 0), Refusal::DetectMultiplierZero),
        ("Multipoint", with(1, 0xe1), Refusal::Multipoint),
        ("My Discriminator 0", with(7, 0), Refusal::MyDiscriminatorZero),
    ]
}

#[test]
fn each_malformed_packet_is_refused_for_its_own_reason() {
    for (what, octets, refusal) in malformed() {
        assert_eq!(Packet::decode(&octets), Err(refusal), "{what}");
    }
}

#[test]
fn of_two_faults_the_first_in_the_order_of_the_standard_is_told() {
    let mut octets = UP;
    octets[7] = 0;
    assert_eq!(Packet::decode(&octets), Err(Refusal::MyDiscriminatorZero));
    for (at, octet, refusal) in [
        (1, 0xe1, Refusal::Multipoint),
        (2, 0, Refusal::DetectMultiplierZero),
        (3, 25, Refusal::LengthBeyondPayload),
        (3, 1, Refusal::LengthBelowMinimum),
        (0, 0x60, Refusal::Version),
    ] {
        octets[at] = octet;
        assert_eq!(Packet::decode(&octets), Err(refusal));
    }
}

#[test]
fn what_follows_the_packet_is_not_its_business_and_authentication_is_seen() {
    let padded = [&UP[..], &[0xff; 40]].concat();
    assert_eq!(Packet::decode(&padded), Packet::decode(&UP));
    let mut signed = padded;
    signed[1] |= 0x04;
    signed[3] = 28;
    assert!(Packet::decode(&signed).expect("a packet").authentication);
}

#[test]
fn every_reason_has_a_name_and_a_place_of_its_own() {
    let mut counts = crate::Refusals::default();
    for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
        assert_eq!(refusal as usize, index);
        (0..=index).for_each(|_| counts.add(refusal));
    }
    let names: std::collections::BTreeSet<&str> = counts.iter().map(|(refusal, _)| refusal.name()).collect();
    assert_eq!((names.len(), counts.total()), (13, (1..=13).sum()));
    assert_eq!(counts.count(Refusal::HopLimit), 1);
}

proptest! {
    #[test]
    fn what_is_accepted_is_written_as_it_was_read(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(packet) = Packet::decode(&octets) {
            let again = Packet { authentication: false, ..packet };
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(again));
        }
    }

    #[test]
    fn every_packet_survives_the_wire(
        (code, state, flags) in (0u8..32, 0u8..4, any::<[bool; 4]>()),
        (detect_multiplier, my_discriminator) in (1u8.., 1u32..),
        words in any::<[u32; 4]>(),
    ) {
        let packet = Packet {
            diagnostic: Diagnostic::new(code),
            state: State::of_bits(state),
            poll: flags[0],
            is_final: flags[1],
            control_plane_independent: flags[2],
            authentication: false,
            demand: flags[3],
            detect_multiplier,
            my_discriminator,
            your_discriminator: words[0],
            desired_min_tx: words[1],
            required_min_rx: words[2],
            required_min_echo_rx: words[3],
        };
        prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
    }
}
