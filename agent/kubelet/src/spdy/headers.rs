//! Header blocks: names and values, compressed with zlib over the whole life of a connection, primed with a dictionary
//! that the specification gives (section 2.6.10.1).

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::connection::Error;

/// Names in lower case with their value. Several values of a name are joined by NUL on the wire; here they repeat.
pub type Headers = Vec<(String, String)>;

const BLOCK_BYTES_MAX: usize = 256 << 10;
const COUNT_MAX: usize = 1000;

const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status";
const WORDS_AFTER: [&str; 8] =
    ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// Words with their length before them, then common values run together.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut out = Vec::new();
    for word in WORDS.split_whitespace().chain(WORDS_AFTER) {
        put(&mut out, word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
});

fn put(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text);
}

/// The sending half's compression state.
pub struct Encoder(Compress);

impl Encoder {
    pub fn new() -> Self {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&DICTIONARY).expect("a fresh compressor takes a dictionary");
        Self(compress)
    }

    pub fn encode(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.extend_from_slice(&u32::try_from(headers.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (name, value) in headers {
            put(&mut plain, name.to_ascii_lowercase().as_bytes());
            put(&mut plain, value.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let begin = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - begin).unwrap_or(usize::MAX);
            let before = out.len();
            out.reserve(256);
            let status = self.0.compress_vec(&plain[done.min(plain.len())..], &mut out, FlushCompress::Sync);
            let consumed = usize::try_from(self.0.total_in() - begin).unwrap_or(usize::MAX) >= plain.len();
            // Room that was left over means that the flush is complete.
            let complete = consumed && out.len() < out.capacity();
            if complete || status.is_err() || (consumed && out.len() == before) {
                return out;
            }
        }
    }
}

/// The receiving half's compression state.
pub struct Decoder(Decompress);

impl Decoder {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, Error> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::with_capacity(block.len() * 4 + 256);
        let mut rest = block;
        loop {
            let (before_in, before_out) = (self.0.total_in(), plain.len());
            plain.reserve(1024);
            let outcome = self.0.decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let used = usize::try_from(self.0.total_in() - before_in).unwrap_or(usize::MAX);
            rest = rest.get(used..).unwrap_or_default();
            match outcome {
                Ok(Status::StreamEnd) => return Err(Error::Headers("the compressed stream ended")),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| Error::Headers("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Error::Headers("not zlib data")),
            }
            if plain.len() > BLOCK_BYTES_MAX {
                return Err(Error::Headers("too long"));
            }
            if rest.is_empty() && plain.len() < plain.capacity() {
                return Ok(plain);
            }
            if used == 0 && plain.len() == before_out {
                return Err(Error::Headers("incomplete"));
            }
        }
    }
}

fn parse(plain: &[u8]) -> Result<Headers, Error> {
    let mut rest = plain;
    let count = number(&mut rest)?;
    if count > COUNT_MAX {
        return Err(Error::Headers("too many"));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut rest)?;
        if name.is_empty() {
            return Err(Error::Headers("a name is empty"));
        }
        for value in text(&mut rest)?.split('\0') {
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> Result<usize, Error> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(Error::Headers("cut off"))?;
    *rest = tail;
    usize::try_from(u32::from_be_bytes(*head)).map_err(|_| Error::Headers("too long"))
}

fn text(rest: &mut &[u8]) -> Result<String, Error> {
    let length = number(rest)?;
    let bytes = rest.get(..length).ok_or(Error::Headers("cut off"))?;
    *rest = &rest[length..];
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Headers("not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_specifications() {
        // Length and Adler-32 of the table in the specification.
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    proptest! {
        #[test]
        fn blocks_of_one_connection_round_trip_in_order(
            blocks in prop::collection::vec(prop::collection::vec(("[a-z-]{1,20}", "[ -~]{0,600}"), 0..20), 1..6)
        ) {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
            for headers in blocks {
                let block = encoder.encode(&headers);
                prop_assert_eq!(decoder.decode(&block).unwrap(), headers);
            }
        }

        #[test]
        fn hostile_blocks_are_errors_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..60) {
            let _ = Decoder::new().decode(&bytes);
            let _ = parse(&bytes);
            let block = Encoder::new().encode(&vec![("streamtype".into(), "data".into())]);
            let _ = Decoder::new().decode(&block[..cut.min(block.len())]);
        }
    }

    #[test]
    fn a_block_that_inflates_without_end_is_refused() {
        let huge = vec![("a".to_owned(), "x".repeat(BLOCK_BYTES_MAX + 1))];
        let block = Encoder::new().encode(&huge);
        assert!(block.len() < 4096);
        assert_eq!(Decoder::new().decode(&block), Err(Error::Headers("too long")));
    }
}
