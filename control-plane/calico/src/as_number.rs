//! AS numbers: a number, or text in asplain or asdot notation (RFC 5396).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The number of an autonomous system, 32 bits (RFC 6793).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AsNumber(pub u32);

impl FromStr for AsNumber {
    type Err = String;

    /// Reads `64512`, or `1.10` for 65546.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.split_once('.') {
            None => decimal(text),
            Some((high, low)) => {
                let part = |text| decimal(text).filter(|part| *part <= u32::from(u16::MAX));
                part(high).zip(part(low)).map(|(high, low)| high << 16 | low)
            }
        };
        number.map(Self).ok_or_else(|| format!("{text:?} is no AS number (0 to 4294967295, or 1.10)"))
    }
}

/// Digits and nothing else; `parse` alone would take a sign.
fn decimal(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for AsNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for AsNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self(number)),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_every_notation() {
        for (text, number) in
            [("64512", 64512), ("0", 0), ("4294967295", u32::MAX), ("64512.1", 4_227_858_433)]
        {
            assert_eq!(text.parse(), Ok(AsNumber(number)), "{text}");
        }
        for text in ["", "-1", "+1", "4294967296", "65536.1", "1.65536", "1.2.3", "1.", ".1", "AS1"] {
            assert!(text.parse::<AsNumber>().is_err(), "{text}");
        }
    }

    #[test]
    fn json_may_hold_a_number_or_text() {
        for json in ["65546", "\"65546\"", "\"1.10\""] {
            assert_eq!(
                serde_json::from_str::<AsNumber>(json).map_err(|e| e.to_string()),
                Ok(AsNumber(65546))
            );
        }
        let error =
            serde_json::from_str::<AsNumber>("\"1.70000\"").expect_err("70000 has 17 bits").to_string();
        assert!(error.contains("1.70000"), "{error}");
    }
}
