//! Prometheus' text format, version 0.0.4: a family's HELP and TYPE, then its samples.

use std::fmt::{Display, Write};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page under construction.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
}

impl Text {
    /// A family of numbers that only grow, but for a start from 0 or the end of a series. Its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "counter")
    }

    /// A family of numbers that go up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge")
    }

    /// A family with one histogram.
    pub fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        let family = self.family(name, help, "histogram");
        let mut below = 0;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            below += count;
            sample(&mut family.text.out, &format!("{name}_bucket"), &[("le", &bound.to_string())], below);
        }
        let out = &mut family.text.out;
        let all = below + histogram.above;
        sample(out, &format!("{name}_bucket"), &[("le", "+Inf")], all);
        sample(out, &format!("{name}_sum"), &[], histogram.sum);
        sample(out, &format!("{name}_count"), &[], all);
    }

    pub fn finish(self) -> String {
        self.out
    }

    fn family(&mut self, name: &'static str, help: &str, kind: &str) -> Family<'_> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String does not fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: self, name }
    }
}

/// Takes the samples of one family.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut Text,
    name: &'static str,
}

impl Family<'_> {
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        sample(&mut self.text.out, self.name, labels, value);
        self
    }
}

fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: impl Display) {
    out.push_str(name);
    for (at, (label, text)) in labels.iter().enumerate() {
        out.push(if at == 0 { '{' } else { ',' });
        let _ = write!(out, "{label}=\"");
        for character in text.chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    if !labels.is_empty() {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

/// How many observations were how large.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// The largest value of each bucket, in order.
    bounds: Box<[f64]>,
    counts: Box<[u64]>,
    /// Larger than the last bound.
    above: u64,
    sum: f64,
}

impl Histogram {
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Histogram {
        let bounds: Box<[f64]> = bounds.into_iter().collect();
        let counts = vec![0; bounds.len()].into();
        Histogram { bounds, counts, above: 0, sum: 0.0 }
    }

    pub fn observe(&mut self, value: f64) {
        self.sum += value;
        let at = self.bounds.partition_point(|bound| *bound < value);
        *self.counts.get_mut(at).unwrap_or(&mut self.above) += 1;
    }
}

#[cfg(test)]
pub mod rules {
    //! The format's rules, and those of Prometheus for names: what breaks one is no page.

    use std::collections::{BTreeMap, HashMap, HashSet};

    /// A series' name and labels with its value.
    #[derive(Debug)]
    pub struct Page {
        values: HashMap<(String, BTreeMap<String, String>), f64>,
    }

    impl Page {
        /// # Panics
        /// Says which line breaks which rule.
        pub fn parse(text: &str) -> Page {
            let mut kinds: HashMap<&str, &str> = HashMap::new();
            let mut helped: HashSet<&str> = HashSet::new();
            let mut values = HashMap::new();
            let mut current = "";
            assert!(text.is_empty() || text.ends_with('\n'), "the last line has an end");
            for line in text.lines() {
                if let Some(rest) = line.strip_prefix("# HELP ") {
                    let (name, help) = rest.split_once(' ').expect("a name and a text");
                    assert!(helped.insert(name), "one HELP for each family: {line}");
                    assert!(!help.trim().is_empty(), "{line}");
                } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                    let (name, kind) = rest.split_once(' ').expect("a name and a type");
                    assert!(helped.contains(name), "HELP comes before: {line}");
                    assert!(kinds.insert(name, kind).is_none(), "one TYPE for each family: {line}");
                    assert!(is_name(name) && name.starts_with("seaway_"), "{line}");
                    assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                    assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                    current = name;
                } else {
                    let (name, labels, value) = sample(line);
                    let family = match kinds.get(current) {
                        Some(&"histogram") => ["_bucket", "_sum", "_count"]
                            .iter()
                            .find_map(|end| name.strip_suffix(end))
                            .expect("a part of a histogram"),
                        _ => &name,
                    };
                    assert_eq!(family, current, "the samples of a family stand together: {line}");
                    assert!(value.is_finite(), "{line}");
                    assert!(kinds[current] == "gauge" || value >= 0.0, "{line}");
                    assert!(values.insert((name, labels), value).is_none(), "a series comes once: {line}");
                }
            }
            Page { values }
        }

        pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
            let labels = labels.iter().map(|(label, value)| ((*label).into(), (*value).into())).collect();
            self.values.get(&(name.to_owned(), labels)).copied()
        }

        /// The number of series.
        pub fn count(&self, name: &str) -> usize {
            self.values.keys().filter(|(found, _)| found == name).count()
        }

        /// Over all series.
        pub fn sum(&self, name: &str) -> f64 {
            self.values.iter().filter(|((found, _), _)| found == name).map(|(_, value)| value).sum()
        }
    }

    fn is_name(name: &str) -> bool {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    }

    fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
        let end = line.find(['{', ' ']).expect("a name");
        let (name, mut rest) = line.split_at(end);
        assert!(is_name(name), "{line}");
        let mut labels = BTreeMap::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let (label, quoted) = rest.split_once("=\"").expect("a label");
                assert!(is_name(label) && !label.starts_with("__"), "{line}");
                let (value, after) = unquote(quoted).unwrap_or_else(|| panic!("an open quote: {line}"));
                assert!(labels.insert(label.to_owned(), value).is_none(), "a label comes once: {line}");
                match after.split_at(1) {
                    (",", more) => rest = more,
                    ("}", more) => {
                        rest = more;
                        break;
                    }
                    _ => panic!("neither another label nor an end: {line}"),
                }
            }
        }
        let value = rest.strip_prefix(' ').expect("a space").parse().expect("a number");
        (name.to_owned(), labels, value)
    }

    /// The text before the closing quote, and what is behind that.
    fn unquote(quoted: &str) -> Option<(String, &str)> {
        let mut text = String::new();
        let mut characters = quoted.char_indices();
        loop {
            match characters.next()? {
                (at, '"') => return Some((text, &quoted[at + 1..])),
                (_, '\\') => text.push(match characters.next()?.1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    _ => return None,
                }),
                (_, other) => text.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{rules::Page, *};

    #[test]
    fn a_page_is_written_as_prometheus_reads_it() {
        let mut text = Text::default();
        text.counter("seaway_a_total", "As many\nas \\.").sample(&[("x", "1"), ("y", "2")], 3u64);
        text.gauge("seaway_b", "b").sample(&[], 0.5);
        let page = text.finish();
        assert_eq!(
            page,
            "# HELP seaway_a_total As many\\nas \\\\.\n# TYPE seaway_a_total counter\n\
             seaway_a_total{x=\"1\",y=\"2\"} 3\n# HELP seaway_b b\n# TYPE seaway_b gauge\nseaway_b 0.5\n"
        );
        Page::parse(&page);
    }

    #[test]
    fn any_label_comes_back_as_it_was() {
        for value in ["", "web", "a\"b", "a\\", "\\\"", "line\nline\\n", "ключ", "{a=\"b\",c}"] {
            let mut text = Text::default();
            text.gauge("seaway_b", "b").sample(&[("of", value), ("and", "x")], 7);
            let page = Page::parse(&text.finish());
            assert_eq!(page.get("seaway_b", &[("of", value), ("and", "x")]), Some(7.0), "{value:?}");
        }
    }

    #[test]
    fn a_histogram_counts_each_observation_in_all_buckets_that_hold_it() {
        let mut histogram = Histogram::new([0.001, 0.25, 1.0]);
        for value in [0.0005, 0.001, 0.2, 0.9, 5.0] {
            histogram.observe(value);
        }
        let mut text = Text::default();
        text.histogram("seaway_t_seconds", "t", &histogram);
        let page = Page::parse(&text.finish());
        let bucket = |le| page.get("seaway_t_seconds_bucket", &[("le", le)]).expect("a bucket");
        assert_eq!(["0.001", "0.25", "1", "+Inf"].map(bucket), [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(page.get("seaway_t_seconds_count", &[]), Some(5.0));
        assert!((page.get("seaway_t_seconds_sum", &[]).unwrap() - 6.1015).abs() < 1e-9);
    }
}
