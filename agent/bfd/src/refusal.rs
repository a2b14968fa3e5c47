//! Why a packet is discarded, and how often each reason was met.

use thiserror::Error;

/// In the order in which RFC 5880 section 6.8.6 checks; what RFC 5881 and RFC 5883 check of the IP header goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u8)]
pub enum Refusal {
    #[error("came over more hops than are allowed (RFC 5881 section 5)")]
    HopLimit,
    #[error("shorter than the mandatory section of 24 octets")]
    Truncated,
    #[error("version is not 1")]
    Version,
    #[error("Length is below 24, or 26 with authentication")]
    LengthBelowMinimum,
    #[error("Length is beyond the datagram")]
    LengthBeyondPayload,
    #[error("Detect Mult is zero")]
    DetectMultiplierZero,
    #[error("the Multipoint bit is set")]
    Multipoint,
    #[error("My Discriminator is zero")]
    MyDiscriminatorZero,
    #[error("Your Discriminator names no session")]
    UnknownDiscriminator,
    #[error("Your Discriminator names the session of another peer")]
    OtherPeer,
    #[error("Your Discriminator is zero though the state is Init or Up")]
    YourDiscriminatorZero,
    #[error("no session is configured with the sender")]
    UnknownPeer,
    #[error("authentication is not in use")]
    Authentication,
}

impl Refusal {
    pub const ALL: [Refusal; 13] = [
        Refusal::HopLimit,
        Refusal::Truncated,
        Refusal::Version,
        Refusal::LengthBelowMinimum,
        Refusal::LengthBeyondPayload,
        Refusal::DetectMultiplierZero,
        Refusal::Multipoint,
        Refusal::MyDiscriminatorZero,
        Refusal::UnknownDiscriminator,
        Refusal::OtherPeer,
        Refusal::YourDiscriminatorZero,
        Refusal::UnknownPeer,
        Refusal::Authentication,
    ];

    /// A word for counters.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::HopLimit => "hop_limit",
            Refusal::Truncated => "truncated",
            Refusal::Version => "version",
            Refusal::LengthBelowMinimum => "length_below_minimum",
            Refusal::LengthBeyondPayload => "length_beyond_payload",
            Refusal::DetectMultiplierZero => "detect_multiplier_zero",
            Refusal::Multipoint => "multipoint",
            Refusal::MyDiscriminatorZero => "my_discriminator_zero",
            Refusal::UnknownDiscriminator => "unknown_discriminator",
            Refusal::OtherPeer => "other_peer",
            Refusal::YourDiscriminatorZero => "your_discriminator_zero",
            Refusal::UnknownPeer => "unknown_peer",
            Refusal::Authentication => "authentication",
        }
    }
}

/// Counts by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals([u64; Refusal::ALL.len()]);

impl Refusals {
    pub(crate) fn add(&mut self, refusal: Refusal) {
        self.0[refusal as usize] += 1;
    }

    pub fn count(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.into_iter().map(|refusal| (refusal, self.count(refusal)))
    }
}
