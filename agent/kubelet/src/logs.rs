//! Container logs in the CRI format: `RFC3339NANO STREAM TAGS TEXT`, tag `P` for a part of a longer line.

use jiff::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub at: Timestamp,
    /// The time as written, for `timestamps=true`.
    pub stamp: &'a str,
    pub stream: Stream,
    /// The text goes on in the next line of the same stream.
    pub partial: bool,
    /// Without the line's end.
    pub text: &'a [u8],
}

/// Parses one line of a file; `None` for what is not in the format, such as a line torn by a crash.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let stamp = std::str::from_utf8(parts.next()?).ok()?;
    let at: Timestamp = stamp.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let tags = parts.next()?;
    let partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    Some(Line { at, stamp, stream, partial, text: parts.next().unwrap_or_default() })
}

/// What a reader of a log wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<usize>,
    pub limit_bytes: Option<usize>,
    pub since: Option<Timestamp>,
    pub stream: Option<Stream>,
}

/// Turns the bytes of log files into what the reader sees. Pure: bytes in, bytes out.
#[derive(Clone, Debug)]
pub struct Reader {
    options: Options,
    /// An unfinished line at the end of what was fed.
    rest: Vec<u8>,
    written: usize,
    /// The line before was partial, so this one has no timestamp of its own.
    inside: bool,
}

impl Reader {
    pub fn new(options: Options) -> Self {
        Self { options, rest: Vec::new(), written: 0, inside: false }
    }

    /// Whether `limit_bytes` is reached: nothing more will come.
    pub fn is_full(&self) -> bool {
        self.options.limit_bytes.is_some_and(|limit| self.written >= limit)
    }

    /// Takes the next bytes of the file and appends what the reader sees to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut start = 0;
        while let Some(length) = bytes[start..].iter().position(|byte| *byte == b'\n') {
            let line = &bytes[start..=start + length];
            start += length + 1;
            if self.rest.is_empty() {
                self.line(line, out);
            } else {
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.line(&whole, out);
            }
        }
        self.rest.extend_from_slice(&bytes[start..]);
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(line) else { return };
        let chosen = self.options.since.is_none_or(|since| line.at >= since)
            && self.options.stream.is_none_or(|stream| line.stream == stream);
        if !chosen {
            return;
        }
        let from = out.len();
        if self.options.timestamps && !self.inside {
            out.extend_from_slice(line.stamp.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.inside = line.partial;
        if let Some(limit) = self.options.limit_bytes {
            let room = limit.saturating_sub(self.written);
            out.truncate(from + room.min(out.len() - from));
        }
        self.written += out.len() - from;
    }
}

/// Where the last `count` lines of `bytes` begin. A line and its parts count as one; an unfinished one counts too.
pub fn tail_offset(bytes: &[u8], count: usize) -> usize {
    let mut left = count;
    let mut end = bytes.len();
    let mut begin = end;
    while end > 0 {
        let start = bytes[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let partial = parse(&bytes[start..end]).is_some_and(|line| line.partial);
        // A partial line belongs to the line after it, unless nothing is after it.
        if !partial || begin == bytes.len() {
            if left == 0 {
                break;
            }
            left -= 1;
        }
        begin = start;
        end = start;
    }
    begin
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(lines: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, (tag, text)) in lines.iter().enumerate() {
            let stream = if index % 2 == 0 { "stdout" } else { "stderr" };
            out.extend(format!("2026-01-01T00:00:{index:02}.000000001Z {stream} {tag} {text}\n").bytes());
        }
        out
    }

    fn read(options: Options, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        Reader::new(options).feed(bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn partial_lines_are_joined_and_stamped_once() {
        let bytes = log(&[("P", "ab"), ("F", "c"), ("F", "d e  f"), ("F", "")]);
        assert_eq!(read(Options::default(), &bytes), "abc\nd e  f\n\n");
        let stamped = read(Options { timestamps: true, ..Options::default() }, &bytes);
        assert!(stamped.starts_with("2026-01-01T00:00:00.000000001Z abc\n2026-01-01T00:00:02"), "{stamped}");
    }

    #[test]
    fn limits_and_since_cut_the_output() {
        let bytes = log(&[("F", "aaaa"), ("F", "bbbb"), ("F", "cccc")]);
        assert_eq!(read(Options { limit_bytes: Some(7), ..Options::default() }, &bytes), "aaaa\nbb");
        let since = Some("2026-01-01T00:00:01Z".parse().unwrap());
        assert_eq!(read(Options { since, ..Options::default() }, &bytes), "bbbb\ncccc\n");
        let stream = Some(Stream::Stderr);
        assert_eq!(read(Options { stream, ..Options::default() }, &bytes), "bbbb\n");
    }

    #[test]
    fn the_tail_counts_joined_lines() {
        let bytes = log(&[("F", "1"), ("P", "2a"), ("F", "2b"), ("F", "3")]);
        let tail = |count| read(Options::default(), &bytes[tail_offset(&bytes, count)..]);
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "3\n");
        assert_eq!(tail(2), "2a2b\n3\n");
        assert_eq!(tail(3), "1\n2a2b\n3\n");
        assert_eq!(tail(99), "1\n2a2b\n3\n");
    }

    #[test]
    fn what_is_not_a_log_line_is_left_out() {
        for junk in [
            &b""[..],
            b"\n",
            b"x",
            b"2026-01-01T00:00:00Z",
            b"2026-01-01T00:00:00Z stdin F x",
            b"\xff \xff \xff",
        ] {
            assert_eq!(parse(junk), None, "{junk:?}");
        }
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_reads_the_same(texts in prop::collection::vec("[a-z ]{0,8}", 0..10), cut in 0usize..200) {
            let lines: Vec<(&str, &str)> = texts.iter().map(|text| ("F", text.as_str())).collect();
            let bytes = log(&lines);
            let cut = cut.min(bytes.len());
            let mut reader = Reader::new(Options::default());
            let mut out = Vec::new();
            reader.feed(&bytes[..cut], &mut out);
            reader.feed(&bytes[cut..], &mut out);
            let expected: String = texts.iter().map(|text| format!("{text}\n")).collect();
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), count in 0usize..5) {
            let mut out = Vec::new();
            Reader::new(Options { timestamps: true, ..Options::default() }).feed(&bytes, &mut out);
            prop_assert!(tail_offset(&bytes, count) <= bytes.len());
        }
    }
}
