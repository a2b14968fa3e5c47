//! The texts of types and fields, packed until a document is made.

use std::io::Read;

pub(super) const PACKED: &[u8] = include_bytes!("../../schema/descriptions.z");

/// All texts, one line per line of the table.
pub(super) struct Descriptions {
    text: String,
    starts: Vec<u32>,
}

impl Descriptions {
    pub(super) fn unpack() -> Self {
        let mut text = String::new();
        flate2::read::ZlibDecoder::new(PACKED)
            .read_to_string(&mut text)
            .expect("the descriptions are part of the binary, and the tests unpack them");
        let mut starts = vec![0];
        starts.extend(text.bytes().zip(1..).filter(|(byte, _)| *byte == b'\n').map(|(_, next)| next));
        Self { text, starts }
    }

    /// The text of a line of the table; empty where there is none.
    pub(super) fn line(&self, number: u32) -> String {
        let at = number as usize;
        let (Some(start), Some(end)) = (self.starts.get(at), self.starts.get(at + 1)) else {
            return String::new();
        };
        let line = &self.text[*start as usize..*end as usize - 1];
        let mut out = String::with_capacity(line.len());
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => out.push(if chars.next() == Some('n') { '\n' } else { '\\' }),
                c => out.push(c),
            }
        }
        out
    }

    #[cfg(test)]
    pub(super) fn lines(&self) -> usize {
        self.starts.len() - 1
    }
}
