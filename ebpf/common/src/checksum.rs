//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// The checksum of `bytes`, as it stands in a header: the complement of the one's complement sum of 16-bit words.
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes, 0))
}

/// Adds `bytes` as 16-bit words in network order to a running sum; an odd last byte is padded with zero.
pub fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut total = start as u64;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        total += u16::from_be_bytes([word[0], word[1]]) as u64;
    }
    if let [last] = words.remainder() {
        total += (*last as u64) << 8;
    }
    while total > u32::MAX as u64 {
        total = (total & 0xffff_ffff) + (total >> 32);
    }
    total as u32
}

/// Folds a running sum into 16 bits, without complementing it.
pub const fn fold(sum: u32) -> u16 {
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    folded as u16
}

/// The checksum after a 16-bit word changed from `old` to `new` (RFC 1624, equation 3).
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum) as u32 + (!old) as u32 + new as u32)
}
